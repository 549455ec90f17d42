"""Reports: what an evaluation found, as an artifact that an approval is bound to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from pipelines.card import CardFacts, model_card
from pipelines.errors import ArtifactDamaged
from pipelines.recipes import Recipe
from pipelines.types import Estimate, Evaluation, GateReport, StudentVersion
from pipelines.work import GOLDEN_FILE
from storage.artifacts import Artifact, Artifacts

REPORT_FILE = "report.json"
CARD_FILE = "README.md"
ITEMS_FILE = "items.json"
POOL_FILE = "pool.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that an operator looks at before deciding about one version."""

    task: str
    student: str  # content hash
    name: str
    number: int
    champion: str | None  # content hash of the champion it was compared with
    champion_name: str | None
    dataset: str
    labels_trained: int
    labels_bought: int
    evaluation: Evaluation
    gate: GateReport
    evaluated_at: datetime
    train_seconds: float
    size_bytes: int
    latency_ms: float | None = None
    refused: int = 0  # held-out items to which the teacher's answer was no label: nobody is right
    ceiling: Estimate | None = None  # how often the teacher says the same when asked again
    labels_asked: int = 0  # for the next look, of kept events on which it and the champion differ


class PoolMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What the looks at a candidate have had of the pool, with one champion. Event ids, sorted."""

    read: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()  # to compare these two
    awaited: tuple[str, ...] = ()  # labels that were not there at the last look


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A prompt with the answer that every gateway must give before it swaps."""

    text: str
    label: str
    confidence: float


def write_report(scratch: Path, report: Report, golden: Sequence[Golden]) -> None:
    """Fill a scratch folder, to be published as an artifact of the kind `report`."""
    content = msgspec.to_builtins(report)
    content["gate"]["promotable"] = report.gate.promotable
    (scratch / REPORT_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
    prompts = [asdict(prompt) for prompt in golden]
    (scratch / GOLDEN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(prompts), indent=1))


def write_items(scratch: Path, event_ids: Iterable[str]) -> None:
    """Which held-out items were judged, beside their report: later ones are new evidence."""
    (scratch / ITEMS_FILE).write_bytes(msgspec.json.encode(sorted(event_ids)))


def read_items(artifacts: Artifacts, digest: str) -> frozenset[str]:
    """The items that a report judged; none where it is gone or of an earlier version."""
    if not artifacts.exists("report", digest):
        return frozenset()
    path = artifacts.open("report", digest).file(ITEMS_FILE)
    return frozenset(msgspec.json.decode(path.read_bytes())) if path.is_file() else frozenset()


def write_pool(scratch: Path, memory: PoolMemory) -> None:
    """What was had of the pool, beside the report; without a pool no file."""
    if memory != PoolMemory():
        (scratch / POOL_FILE).write_bytes(msgspec.json.encode(memory))


def read_pool_memory(artifacts: Artifacts, digest: str) -> PoolMemory:
    """Nothing where the report is gone, of an earlier version or without a pool."""
    if not artifacts.exists("report", digest):
        return PoolMemory()
    path = artifacts.open("report", digest).file(POOL_FILE)
    if not path.is_file():
        return PoolMemory()
    return msgspec.json.decode(path.read_bytes(), type=PoolMemory)


def write_card(
    scratch: Path,
    report: Report,
    version: StudentVersion,
    *,
    recipe: Recipe,
    dataset: Mapping[str, Any],
    base: Mapping[str, Any],
    teacher: str,
) -> None:
    """The version's model card, beside its report. `dataset` and `base`: from their manifests."""
    card = model_card(
        CardFacts(
            version=version,
            recipe=recipe,
            evaluation=report.evaluation,
            gate=report.gate,
            champion=report.champion_name,
            dataset=dataset,
            base=base,
            teacher=teacher,
            evaluated_at=report.evaluated_at,
            size_bytes=report.size_bytes,
            latency_ms=report.latency_ms,
            ceiling=report.ceiling,
            labels_asked=report.labels_asked,
        )
    )
    (scratch / CARD_FILE).write_text(card, encoding="utf-8")


def read_card(artifacts: Artifacts, digest: str) -> str | None:
    """The model card in a report; None in one from before there were cards."""
    path = artifacts.open("report", digest).file(CARD_FILE)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def read_report(artifacts: Artifacts, digest: str) -> Report:
    """Verify the artifact and read it, or raise `ArtifactDamaged`."""
    return parse_report(artifacts.open("report", digest))


def parse_report(artifact: Artifact) -> Report:
    try:
        return msgspec.json.decode(artifact.file(REPORT_FILE).read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactDamaged(
            f"report {artifact.digest[:12]} has no readable {REPORT_FILE}: {error}"
        ) from error
