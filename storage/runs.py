"""Training runs: each start of the trainer and how it ended. All SQL about them."""

from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Literal

from storage.database import Cursor, from_db_time, from_db_time_or_none, to_db_time

MOST_FAILURES = 10  # that are counted
RunStatus = Literal["running", "succeeded", "failed"]

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


def failures_in_a_row(tx: Cursor, task: str) -> int:
    """How many of the latest training runs failed, one that is running left out; at most ten."""
    past = [run for run in runs(tx, task, MOST_FAILURES + 1) if run.status != "running"]
    failed = takewhile(lambda run: run.status == "failed", past)
    return min(MOST_FAILURES, len(list(failed)))


def _page(tx: Cursor, select: str, limit: int, before: datetime | None) -> list[TrainingRun]:
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    return [_run(row) for row in tx.execute(select, values).fetchall()]


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
