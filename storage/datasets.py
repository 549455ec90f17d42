"""Datasets: as files for the trainer and for everybody else, and as rows. All SQL about them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from pipelines.curate import Curated
from pipelines.label import write_answer
from pipelines.rows import HELD_OUT_FILE, TRAIN_FILE, held_out_row, training_row, write_rows
from pipelines.types import Task
from storage.database import Cursor, first_row, from_db_time, to_db_time

CHAT_FILE = "chat.jsonl"
PARQUET_FILE = "examples.parquet"

WRITE_PARQUET = """
COPY (
    SELECT
        unnest($event_id) AS event_id, unnest($split) AS split, unnest($text) AS text,
        unnest($label) AS label, unnest($group_id) AS group_id, unnest($weight) AS weight
) TO {path} (FORMAT parquet)
"""

INSERT_DATASET = """
INSERT INTO datasets (digest, task, parent, labels, examples, held_out, cut_off, created_at)
VALUES ($digest, $task, $parent, $labels, $examples, $held_out, $cut_off, $now)
ON CONFLICT DO NOTHING
"""

SELECT_LATEST_DATASET = """
SELECT digest, task, parent, labels, examples, held_out, cut_off, created_at
FROM datasets WHERE task = $task ORDER BY created_at DESC, digest LIMIT 1
"""

SELECT_DATASET = """
SELECT digest, task, parent, labels, examples, held_out, cut_off, created_at
FROM datasets WHERE digest = $digest
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """What the database knows of a dataset; the rest is in the artifact."""

    digest: str
    task: str
    parent: str | None
    labels: int
    examples: int
    held_out: int
    cut_off: datetime
    created_at: datetime


def write_dataset(scratch: Path, curated: Curated, task: Task) -> None:
    """Fill a scratch folder, to be published as an artifact of the kind `dataset`."""
    write_rows(scratch / TRAIN_FILE, map(training_row, curated.training))
    write_rows(scratch / HELD_OUT_FILE, map(held_out_row, curated.held_out))
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


def add_dataset(
    tx: Cursor,
    *,
    digest: str,
    task: str,
    parent: str | None,
    labels: int,
    examples: int,
    held_out: int,
    cut_off: datetime,
    now: datetime,
) -> None:
    """Note a published dataset; the same content a second time changes nothing."""
    tx.execute(
        INSERT_DATASET,
        {
            "digest": digest,
            "task": task,
            "parent": parent,
            "labels": labels,
            "examples": examples,
            "held_out": held_out,
            "cut_off": to_db_time(cut_off),
            "now": to_db_time(now),
        },
    )


def latest_dataset(tx: Cursor, task: str) -> StoredDataset | None:
    return _dataset(first_row(tx.execute(SELECT_LATEST_DATASET, {"task": task})))


def dataset_by_digest(tx: Cursor, digest: str) -> StoredDataset | None:
    return _dataset(first_row(tx.execute(SELECT_DATASET, {"digest": digest})))


def _dataset(row: tuple[Any, ...] | None) -> StoredDataset | None:
    if row is None:
        return None
    digest, task, parent, labels, examples, held_out, cut_off, created_at = row
    return StoredDataset(
        digest=digest,
        task=task,
        parent=parent,
        labels=labels,
        examples=examples,
        held_out=held_out,
        cut_off=from_db_time(cut_off),
        created_at=from_db_time(created_at),
    )
