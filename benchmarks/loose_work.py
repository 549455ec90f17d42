"""Work outside an installation: inputs in plain folders, under an executor of one's own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.rows import TRAIN_FILE, TrainingRow, write_rows
from pipelines.work import Input
from service.learner.executor import LocalExecutor, Places
from service.sections import TrainerSettings

DATASET = Input("source", "dataset")
ENCODER = Input("source", "encoder")
BASE = Input("source", "base")


def loose_executor(
    folder: Path,
    settings: TrainerSettings,
    inputs: Mapping[Input, Path],
    on_progress: Callable[[Mapping[str, Any]], None] = lambda told: None,
    *,
    precision: Path | None = None,
    vectors: Path | None = None,
) -> LocalExecutor:
    """One that finds the inputs where it is told, and keeps the rest in `folder`."""

    def find(wanted: Input) -> Path:
        raise LookupError(f"nobody said where {wanted.name} lies")

    places = Places(
        find=find,
        vectors=lambda encoder: vectors or folder / "vectors",
        checkpoint=lambda task, name: folder / name,
        precision=precision or folder / "precision.json",
    )
    executor = LocalExecutor(settings, places, on_progress)
    for one, path in inputs.items():
        executor.offer(one, path)
    return executor


def write_training(dataset: Path, labelled: Sequence[tuple[str, str]]) -> None:
    """A dataset of (text, label) pairs, each a near-duplicate group of its own."""
    dataset.mkdir(parents=True, exist_ok=True)
    rows = (
        TrainingRow(event_id=str(at), text=text, label=label, group_id=str(at))
        for at, (text, label) in enumerate(labelled)
    )
    write_rows(dataset / TRAIN_FILE, rows)
