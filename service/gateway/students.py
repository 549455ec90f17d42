"""Loaded students of both families: a head on an encoder, or adapters on a chat model.

Students that read with the same base share it, and it goes with the last of them.
"""

import json
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from pipelines.errors import ArtifactDamaged
from pipelines.recipes import FamilyName
from pipelines.students.bases import require_training_stack
from pipelines.students.causal import CausalConfig, load_config
from pipelines.students.encoder import Encoder
from pipelines.students.families import FAMILIES
from pipelines.students.head import CONFIG_FILE, Classifier, Head, load_head
from pipelines.types import LabelledAnswer
from service.gateway.batcher import Batcher
from service.gateway.engines.base import Engine, EngineBusy, EngineFailed
from service.gateway.engines.local import LocalEngine
from service.gateway.student import Student, StudentFailed, StudentReply
from service.host.memory import give_back
from service.metrics.gateway import GatewayMetrics
from storage.artifacts import Artifact, Artifacts
from storage.live import LiveStudent

log = structlog.get_logger()

MAX_TOKENS = 128  # of heads that do not say
LOG_SECONDS = 60.0  # between two lines about one student's failures


class Failures:
    """Counts what fails in one student's model, and says so once a minute."""

    def __init__(self, task: str, version: str, metrics: GatewayMetrics) -> None:
        self._task = task
        self._version = version
        self._metrics = metrics
        self._logged_at = float("-inf")

    def note(self, error: Exception) -> StudentFailed:
        reason = (
            "busy"
            if isinstance(error, EngineBusy)
            else "engine"
            if isinstance(error, EngineFailed)
            else "crashed"
        )
        self._metrics.student_failures.labels(self._task, reason).inc()
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            # A library's message may quote the text; ours never do.
            known = isinstance(error, EngineBusy | EngineFailed)
            log.error(
                "student_failed",
                task=self._task,
                student_version=self._version,
                reason=reason,
                error=str(error) if known else type(error).__name__,
            )
        return StudentFailed(f"{self._version} gives no answer: {reason}")


class HeadStudent:
    """A head; its texts are read in batches with those of others on the same encoder."""

    def __init__(self, head: Head, batcher: Batcher) -> None:
        self._head = head
        self._batcher = batcher

    @property
    def labels(self) -> tuple[str, ...]:
        return self._head.labels

    async def answer(self, text: str, *, patient: bool = False) -> StudentReply:
        return await self._batcher.answer(text, self._head, patient=patient)

    def answer_now(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        return Classifier(head=self._head, encoder=self._batcher.encoder).answer(texts)


class CausalStudent:
    """Adapters in an engine, which forgets them when this is gone."""

    def __init__(
        self, config: CausalConfig, engine: Engine, name: str, folder: Callable[[], Path]
    ) -> None:
        self.labels = config.labels
        self._engine = engine
        self._name = name
        engine.load(name, folder)
        weakref.finalize(self, engine.unload, name)

    async def answer(self, text: str, *, patient: bool = False) -> StudentReply:
        return StudentReply(*await self._engine.answer(text, self._name, patient=patient))

    def answer_now(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        replies = self._engine.read(self._name, texts)
        return [LabelledAnswer(reply.label, reply.confidence) for reply in replies]


class Students:
    """Loads students, and keeps what they share."""

    def __init__(self, artifacts: Artifacts, metrics: GatewayMetrics, *, threads: int) -> None:
        self._artifacts = artifacts
        self._metrics = metrics
        self._threads = threads
        self._batchers: WeakValueDictionary[tuple[str, int], Batcher] = WeakValueDictionary()
        self._engines: WeakValueDictionary[str, Engine] = WeakValueDictionary()
        self._names = count(1)  # a student that is loaded again may meet itself, still draining
        self._closed = False

    def load(self, task: str, wanted: LiveStudent, check_labels: "CheckLabels") -> Student:
        """The student, verified byte by byte, in memory. `check_labels` may refuse it before."""
        student = self._artifacts.open("student", wanted.student)
        return LOADERS[wanted.family](self, task, wanted, student, check_labels)

    def close(self) -> None:
        """End the engines, and load nothing more."""
        self._closed = True
        for engine in list(self._engines.values()):
            engine.close()

    def _load_head(
        self, task: str, wanted: LiveStudent, student: Artifact, check_labels: "CheckLabels"
    ) -> HeadStudent:
        config = json.loads(student.file(CONFIG_FILE).read_text())
        base = config.get("encoder", wanted.base)
        _check_made_for(task, wanted, config.get("task", task), base)
        batcher = self._batcher(wanted.base, int(config.get("max_tokens", MAX_TOKENS)))
        head = load_head(student.path, dimension=batcher.encoder.dimension)
        check_labels(head.labels)
        return HeadStudent(head, batcher)

    def _load_causal(
        self, task: str, wanted: LiveStudent, student: Artifact, check_labels: "CheckLabels"
    ) -> CausalStudent:
        require_training_stack()
        config = load_config(student.path)
        _check_made_for(task, wanted, config.task, config.chat_model)
        check_labels(config.labels)
        engine = self._engine(wanted.base)
        artifacts, digest = self._artifacts, wanted.student
        name = f"student-{next(self._names)}"
        return CausalStudent(config, engine, name, lambda: artifacts.open("student", digest).path)

    def _batcher(self, digest: str, max_tokens: int) -> Batcher:
        """The encoder, shared by all students that read with it."""
        found = self._batchers.get((digest, max_tokens))
        if found is None:
            encoder = self._artifacts.open("encoder", digest)
            loaded = Encoder(encoder.path, threads=self._threads, max_tokens=max_tokens)
            give_back()  # loading takes 60 MB more than the loaded encoder
            found = self._batchers[(digest, max_tokens)] = Batcher(loaded, self._observe)
        return found

    def _engine(self, digest: str) -> Engine:
        """The chat model's process, shared by all students on it."""
        found = self._engines.get(digest)
        if found is None:
            artifacts = self._artifacts
            found = self._engines[digest] = LocalEngine(
                digest,
                lambda: artifacts.open("chat_model", digest).path,
                self._metrics,
                threads=self._threads,
            )
        if self._closed:  # also while this was made
            found.close()
        return found

    def _observe(self, seconds: float, texts: int) -> None:
        self._metrics.model_seconds.observe(seconds)
        self._metrics.model_batch.observe(texts)


CheckLabels = Callable[[Sequence[str]], None]
Load = Callable[[Students, str, LiveStudent, Artifact, CheckLabels], Student]

# How a gateway holds each family: from vectors in batches with others, or in an engine.
LOADERS: Mapping[FamilyName, Load] = {
    "head": Students._load_head,
    "causal": Students._load_causal,
}


def _check_made_for(task: str, wanted: LiveStudent, made_for: str, made_on: str) -> None:
    if made_on != wanted.base:
        kind = FAMILIES[wanted.family].base_kind.replace("_", " ")
        raise ArtifactDamaged(f"the student was trained on another {kind} than is published")
    if made_for != task:
        raise ArtifactDamaged("the student was trained for another task")
