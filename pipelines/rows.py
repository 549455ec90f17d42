"""The rows of a dataset as the trainer and the judge read them: typed, written and read here only.

A field is only ever added, with a default: datasets that were published before stay readable.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pipelines.types import Example, HeldOutItem

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"


class TrainingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One example to learn from: a text, its label, and how much that label counts."""

    event_id: str
    text: str
    label: str
    group_id: str  # of near-duplicates: never on both sides of a split
    weight: float = 1.0


class HeldOutRow(msgspec.Struct, frozen=True, kw_only=True):
    """One item to judge by, with the probability that it was drawn with."""

    event_id: str
    text: str
    label: str
    group_id: str
    segment: str
    inclusion_probability: float


def training_row(example: Example) -> TrainingRow:
    return TrainingRow(
        event_id=example.event_id,
        text=example.text,
        label=example.label,
        group_id=example.group_id,
        weight=example.weight,
    )


def held_out_row(item: HeldOutItem) -> HeldOutRow:
    return HeldOutRow(
        event_id=item.event_id,
        text=item.text,
        label=item.label,
        group_id=item.group_id,
        segment=item.segment,
        inclusion_probability=item.inclusion_probability,
    )


def write_rows(path: Path, rows: Iterable[TrainingRow | HeldOutRow]) -> None:
    """As JSONL. The bytes are part of a dataset's hash, so their form does not change."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            content = msgspec.to_builtins(row)
            file.write(json.dumps(content, ensure_ascii=False, sort_keys=True) + "\n")


def read_training(dataset: Path) -> list[TrainingRow]:
    """The rows of a dataset that teach."""
    return [msgspec.json.decode(line, type=TrainingRow) for line in _lines(dataset / TRAIN_FILE)]


def read_held_out(dataset: Path) -> list[HeldOutRow]:
    """The rows of a dataset that judge."""
    return [msgspec.json.decode(line, type=HeldOutRow) for line in _lines(dataset / HELD_OUT_FILE)]


def _lines(path: Path) -> Iterator[bytes]:
    """Only a line feed ends a line: texts may hold other breaks."""
    with path.open("rb") as file:
        yield from file
