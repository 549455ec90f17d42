"""Student versions: every student that was published, by number. All SQL about them."""

import json
from typing import Any

from pipelines.types import StudentVersion
from storage.database import Cursor, first_row, from_db_time, to_db_time

SELECT_NEXT_NUMBER = "SELECT coalesce(max(number), 0) + 1 FROM students WHERE task = $task"

INSERT_VERSION = """
INSERT INTO students (
    task, number, digest, dataset, family, base_kind, base, recipe, labels_trained,
    labels_bought, trained_at, train_seconds, training
) VALUES (
    $task, $number, $digest, $dataset, $family, $base_kind, $base, $recipe, $labels_trained,
    $labels_bought, $trained_at, $train_seconds, $training
)
"""

_SELECT_VERSION = """
SELECT task, number, digest, dataset, family, base_kind, base, recipe, labels_trained,
    labels_bought, trained_at, train_seconds, training
FROM students
"""
SELECT_VERSION_BY_DIGEST = _SELECT_VERSION + "WHERE task = $task AND digest = $digest"
SELECT_VERSION_BY_NUMBER = _SELECT_VERSION + "WHERE task = $task AND number = $number"
SELECT_VERSIONS = _SELECT_VERSION + "WHERE task = $task ORDER BY number DESC"

SELECT_VERSIONS_BY_CONTENT = (
    _SELECT_VERSION
    + """WHERE task = $task AND recipe = $recipe AND dataset = $dataset
ORDER BY number DESC"""
)

SELECT_TASKS = "SELECT DISTINCT task FROM students"


def next_number(tx: Cursor, task: str) -> int:
    row = first_row(tx.execute(SELECT_NEXT_NUMBER, {"task": task}))
    assert row is not None
    return int(row[0])


def add_version(tx: Cursor, version: StudentVersion) -> StudentVersion:
    """Store a version and return it; a student that has a number already keeps it.

    A name is never reused: a second student under one number is an error.
    """
    known = version_by_digest(tx, version.task, version.student)
    if known is not None:
        return known
    tx.execute(
        INSERT_VERSION,
        {
            "task": version.task,
            "number": version.number,
            "digest": version.student,
            "dataset": version.dataset,
            "family": version.family,
            "base_kind": version.base_kind,
            "base": version.base,
            "recipe": version.recipe,
            "labels_trained": version.labels_trained,
            "labels_bought": version.labels_bought,
            "trained_at": to_db_time(version.trained_at),
            "train_seconds": version.train_seconds,
            "training": json.dumps(dict(version.training), ensure_ascii=False, sort_keys=True),
        },
    )
    return version


def version_by_digest(tx: Cursor, task: str, digest: str) -> StudentVersion | None:
    row = first_row(tx.execute(SELECT_VERSION_BY_DIGEST, {"task": task, "digest": digest}))
    return None if row is None else _version(row)


def version_by_number(tx: Cursor, task: str, number: int) -> StudentVersion | None:
    row = first_row(tx.execute(SELECT_VERSION_BY_NUMBER, {"task": task, "number": number}))
    return None if row is None else _version(row)


def versions_by_content(tx: Cursor, task: str, dataset: str, recipe: str) -> list[StudentVersion]:
    """The versions that were made of this dataset by this recipe, the newest first."""
    values = {"task": task, "dataset": dataset, "recipe": recipe}
    return [_version(row) for row in tx.execute(SELECT_VERSIONS_BY_CONTENT, values).fetchall()]


def versions(tx: Cursor, task: str) -> list[StudentVersion]:
    """All versions of a task, newest first."""
    return [_version(row) for row in tx.execute(SELECT_VERSIONS, {"task": task}).fetchall()]


def tasks_with_versions(tx: Cursor) -> list[str]:
    """Every task that ever had a student, whatever the settings say now."""
    return sorted(task for (task,) in tx.execute(SELECT_TASKS).fetchall())


def _version(row: tuple[Any, ...]) -> StudentVersion:
    task, number, digest, dataset, family, kind, base, recipe, trained, bought, *made = row
    at, seconds, training = made
    return StudentVersion(
        task=task,
        number=number,
        student=digest,
        dataset=dataset,
        family=family,
        base_kind=kind,
        base=base,
        recipe=recipe,
        labels_trained=trained,
        labels_bought=bought,
        trained_at=from_db_time(at),
        train_seconds=seconds,
        training=json.loads(training),
    )
