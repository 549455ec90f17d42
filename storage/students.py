"""Datasets, training runs, student versions and their evaluations. All SQL about them."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pipelines.types import StudentVersion, Verdict
from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

RunStatus = Literal["running", "succeeded", "failed"]

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

INSERT_RUN = """
INSERT INTO training_runs (run_id, task, dataset, recipe, reason, started_at, status)
VALUES ($run_id, $task, $dataset, $recipe, $reason, $now, 'running')
"""

END_RUN = """
UPDATE training_runs
SET status = $status, failure = $failure, student = $student, ended_at = $now
WHERE run_id = $run_id
"""

FAIL_RUNNING_RUNS = """
UPDATE training_runs
SET status = 'failed', failure = 'the learner ended while it ran', ended_at = $now
WHERE status = 'running'
RETURNING run_id
"""

_SELECT_RUN = """
SELECT run_id, task, dataset, recipe, reason, started_at, ended_at, status, failure, student
FROM training_runs
"""
SELECT_RUNS = _SELECT_RUN + "WHERE task = $task ORDER BY started_at DESC, run_id LIMIT $limit"
SELECT_RUNS_BY_START = (
    _SELECT_RUN
    + """WHERE $before IS NULL OR started_at < $before
ORDER BY started_at DESC, run_id LIMIT $limit"""
)
SELECT_RUNS_BY_END = (
    _SELECT_RUN
    + """WHERE ended_at IS NOT NULL AND ($before IS NULL OR ended_at < $before)
ORDER BY ended_at DESC, run_id LIMIT $limit"""
)

SELECT_NEXT_NUMBER = "SELECT coalesce(max(number), 0) + 1 FROM students WHERE task = $task"

INSERT_VERSION = """
INSERT INTO students (
    task, number, digest, dataset, base, recipe, labels_trained, labels_bought,
    trained_at, train_seconds, training
) VALUES (
    $task, $number, $digest, $dataset, $base, $recipe, $labels_trained, $labels_bought,
    $trained_at, $train_seconds, $training
)
"""

_SELECT_VERSION = """
SELECT task, number, digest, dataset, base, recipe, labels_trained, labels_bought,
    trained_at, train_seconds, training
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

INSERT_EVALUATION = """
INSERT INTO evaluations (
    task, digest, attempt, champion, snapshot, items, report, verdict, promotable,
    compared, threshold, coverage, evaluated_at
) VALUES (
    $task, $digest, $attempt, $champion, $snapshot, $items, $report, $verdict, $promotable,
    $compared, $threshold, $coverage, $evaluated_at
)
"""

_SELECT_EVALUATION = """
SELECT task, digest, attempt, champion, snapshot, items, report, verdict, promotable,
    compared, threshold, coverage, evaluated_at
FROM evaluations
"""
SELECT_LATEST_EVALUATION = (
    _SELECT_EVALUATION
    + "WHERE task = $task AND digest = $digest ORDER BY evaluated_at DESC LIMIT 1"
)
SELECT_LATEST_EVALUATIONS = (
    _SELECT_EVALUATION
    + """WHERE task = $task
QUALIFY row_number() OVER (PARTITION BY digest ORDER BY evaluated_at DESC) = 1"""
)
SELECT_EVALUATION_BY_REPORT = (
    _SELECT_EVALUATION
    + """WHERE task = $task AND digest = $digest AND report = $report
ORDER BY evaluated_at DESC LIMIT 1"""
)
SELECT_EVALUATIONS = (
    _SELECT_EVALUATION + "WHERE task = $task AND digest = $digest ORDER BY evaluated_at"
)
SELECT_RECENT_EVALUATIONS = (
    _SELECT_EVALUATION
    + """WHERE $before IS NULL OR evaluated_at < $before
ORDER BY evaluated_at DESC LIMIT $limit"""
)

# Candidates judged since the last approval, in the order of their first judgement.
SELECT_JUDGED = """
SELECT digest, count(*) FROM evaluations
WHERE task = $task AND compared AND evaluated_at > coalesce(
    (SELECT max(decided_at) FROM decisions WHERE task = $task AND action = 'approve'),
    TIMESTAMP '0001-01-01')
GROUP BY digest ORDER BY min(evaluated_at), digest
"""


class GateTurn(NamedTuple):
    """The how-manieth candidate since the last approval, and the how-manieth look at it."""

    attempt: int
    look: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One start of the trainer and how it ended."""

    run_id: str
    task: str
    dataset: str
    recipe: str
    reason: str
    started_at: datetime
    ended_at: datetime | None
    status: RunStatus
    failure: str | None
    student: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvaluation:
    """One evaluation of a version. `report` is the content hash of the report artifact."""

    task: str
    digest: str
    attempt: int
    champion: str | None
    snapshot: str
    items: int
    report: str
    verdict: Verdict
    promotable: bool
    compared: bool  # whether it used its items up
    threshold: float | None
    coverage: float
    evaluated_at: datetime


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


def start_run(
    tx: Cursor, *, run_id: str, task: str, dataset: str, recipe: str, reason: str, now: datetime
) -> None:
    tx.execute(
        INSERT_RUN,
        {
            "run_id": run_id,
            "task": task,
            "dataset": dataset,
            "recipe": recipe,
            "reason": reason,
            "now": to_db_time(now),
        },
    )


def end_run(
    tx: Cursor,
    *,
    run_id: str,
    status: Literal["succeeded", "failed"],
    failure: str | None = None,
    student: str | None = None,
    now: datetime,
) -> None:
    tx.execute(
        END_RUN,
        {
            "run_id": run_id,
            "status": status,
            "failure": failure,
            "student": student,
            "now": to_db_time(now),
        },
    )


def fail_running_runs(tx: Cursor, now: datetime) -> list[str]:
    """After a crash: no trainer outlives its learner, so what still runs has failed."""
    rows = tx.execute(FAIL_RUNNING_RUNS, {"now": to_db_time(now)}).fetchall()
    return [run_id for (run_id,) in rows]


def runs(tx: Cursor, task: str, limit: int) -> list[TrainingRun]:
    """The latest training runs, newest first."""
    return [_run(row) for row in tx.execute(SELECT_RUNS, {"task": task, "limit": limit}).fetchall()]


def started_runs(tx: Cursor, limit: int, before: datetime | None = None) -> list[TrainingRun]:
    """Of all tasks, the newest start first."""
    return _page(tx, SELECT_RUNS_BY_START, limit, before)


def ended_runs(tx: Cursor, limit: int, before: datetime | None = None) -> list[TrainingRun]:
    """Of all tasks, the newest end first."""
    return _page(tx, SELECT_RUNS_BY_END, limit, before)


def _page(tx: Cursor, select: str, limit: int, before: datetime | None) -> list[TrainingRun]:
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    return [_run(row) for row in tx.execute(select, values).fetchall()]


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


def add_evaluation(tx: Cursor, evaluation: StoredEvaluation) -> None:
    tx.execute(
        INSERT_EVALUATION,
        {
            "task": evaluation.task,
            "digest": evaluation.digest,
            "attempt": evaluation.attempt,
            "champion": evaluation.champion,
            "snapshot": evaluation.snapshot,
            "items": evaluation.items,
            "report": evaluation.report,
            "verdict": evaluation.verdict,
            "promotable": evaluation.promotable,
            "compared": evaluation.compared,
            "threshold": evaluation.threshold,
            "coverage": evaluation.coverage,
            "evaluated_at": to_db_time(evaluation.evaluated_at),
        },
    )


def latest_evaluation(tx: Cursor, task: str, digest: str) -> StoredEvaluation | None:
    row = first_row(tx.execute(SELECT_LATEST_EVALUATION, {"task": task, "digest": digest}))
    return None if row is None else _evaluation(row)


def latest_evaluations(tx: Cursor, task: str) -> dict[str, StoredEvaluation]:
    """The latest evaluation of each version, by the student's digest."""
    rows = tx.execute(SELECT_LATEST_EVALUATIONS, {"task": task}).fetchall()
    return {found.digest: found for found in map(_evaluation, rows)}


def evaluation_by_report(
    tx: Cursor, task: str, digest: str, report: str
) -> StoredEvaluation | None:
    """The evaluation whose report an approval looked at."""
    row = first_row(
        tx.execute(SELECT_EVALUATION_BY_REPORT, {"task": task, "digest": digest, "report": report})
    )
    return None if row is None else _evaluation(row)


def evaluations_of(tx: Cursor, task: str, digest: str) -> list[StoredEvaluation]:
    """Every evaluation of one version, oldest first."""
    values = {"task": task, "digest": digest}
    return [_evaluation(row) for row in tx.execute(SELECT_EVALUATIONS, values).fetchall()]


def recent_evaluations(
    tx: Cursor, limit: int, before: datetime | None = None
) -> list[StoredEvaluation]:
    """Of all tasks, newest first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    rows = tx.execute(SELECT_RECENT_EVALUATIONS, values).fetchall()
    return [_evaluation(row) for row in rows]


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


def _run(row: tuple[Any, ...]) -> TrainingRun:
    run_id, task, dataset, recipe, reason, started_at, ended_at, status, failure, student = row
    return TrainingRun(
        run_id=run_id,
        task=task,
        dataset=dataset,
        recipe=recipe,
        reason=reason,
        started_at=from_db_time(started_at),
        ended_at=from_db_time_or_none(ended_at),
        status=status,
        failure=failure,
        student=student,
    )


def _version(row: tuple[Any, ...]) -> StudentVersion:
    (task, number, digest, dataset, base, recipe, trained, bought, at, seconds, training) = row
    return StudentVersion(
        task=task,
        number=number,
        student=digest,
        dataset=dataset,
        base=base,
        recipe=recipe,
        labels_trained=trained,
        labels_bought=bought,
        trained_at=from_db_time(at),
        train_seconds=seconds,
        training=json.loads(training),
    )


def _evaluation(row: tuple[Any, ...]) -> StoredEvaluation:
    *plain, evaluated_at = row
    names = StoredEvaluation.__dataclass_fields__
    found = dict(zip(list(names)[:-1], plain, strict=True))
    return StoredEvaluation(**found, evaluated_at=from_db_time(evaluated_at))


def gate_turn(tx: Cursor, task: str, digest: str) -> GateTurn:
    """The turn of a candidate that is about to be judged."""
    rows = tx.execute(SELECT_JUDGED, {"task": task}).fetchall()
    judged = [row[0] for row in rows]
    if digest in judged:
        return GateTurn(
            attempt=judged.index(digest) + 1, look=int(rows[judged.index(digest)][1]) + 1
        )
    return GateTurn(attempt=len(judged) + 1, look=1)
