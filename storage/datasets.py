"""A curated dataset as files: JSONL for the trainer, chat format and Parquet for everybody else."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from pipelines.curate import Curated
from pipelines.label import write_answer
from pipelines.types import HeldOutItem, Task

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
CHAT_FILE = "chat.jsonl"
PARQUET_FILE = "examples.parquet"

WRITE_PARQUET = """
COPY (
    SELECT
        unnest($event_id) AS event_id, unnest($split) AS split, unnest($text) AS text,
        unnest($label) AS label, unnest($group_id) AS group_id, unnest($weight) AS weight
) TO {path} (FORMAT parquet)
"""


def write_dataset(scratch: Path, curated: Curated, task: Task) -> None:
    """Fill a scratch folder, to be published as an artifact of the kind `dataset`."""
    _write_lines(
        scratch / TRAIN_FILE,
        (
            {
                "event_id": example.event_id,
                "text": example.text,
                "label": example.label,
                "group_id": example.group_id,
                "weight": example.weight,
            }
            for example in curated.training
        ),
    )
    write_items(scratch / HELD_OUT_FILE, curated.held_out)
    _write_lines(
        scratch / CHAT_FILE,
        (
            {
                "messages": [
                    *({"role": m.role, "content": m.content} for m in example.messages),
                    {"role": "assistant", "content": write_answer(example.label, task)},
                ]
            }
            for example in curated.training
        ),
    )
    _write_parquet(scratch / PARQUET_FILE, curated)


def write_items(path: Path, items: Iterable[HeldOutItem]) -> None:
    """Held-out items as JSONL, for the child that answers them."""
    _write_lines(
        path,
        (
            {
                "event_id": item.event_id,
                "text": item.text,
                "label": item.label,
                "group_id": item.group_id,
                "segment": item.segment,
                "inclusion_probability": item.inclusion_probability,
            }
            for item in items
        ),
    )


def read_training_texts(dataset: Path) -> list[str]:
    """The texts that a student of this dataset was trained on."""
    # Only a line feed ends a line: texts may hold other breaks.
    with (dataset / TRAIN_FILE).open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line)["text"] for line in file]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _write_parquet(path: Path, curated: Curated) -> None:
    rows = [
        *(
            (e.event_id, "training", e.text, e.label, e.group_id, e.weight)
            for e in curated.training
        ),
        *((i.event_id, "held_out", i.text, i.label, i.group_id, 1.0) for i in curated.held_out),
    ]
    names = ("event_id", "split", "text", "label", "group_id", "weight")
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    quoted = "'" + str(path).replace("'", "''") + "'"
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        connection.execute(WRITE_PARQUET.format(path=quoted), columns)
