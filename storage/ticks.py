"""Ticks of the scheduled jobs, each recorded once, and what is paused. All SQL about them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

TickOutcome = Literal["running", "done", "nothing", "failed", "paused", "missed"]
ALL_JOBS = "all"  # pauses the whole learner's schedule

INSERT_TICK = """
INSERT INTO ticks (job, scheduled_at, started_at, ended_at, outcome, detail)
VALUES ($job, $scheduled_at, $started_at, $ended_at, $outcome, $detail)
ON CONFLICT DO NOTHING
RETURNING job
"""

END_TICK = """
UPDATE ticks SET ended_at = $now, outcome = $outcome, detail = $detail
WHERE job = $job AND scheduled_at = $scheduled_at
"""

FAIL_RUNNING_TICKS = """
UPDATE ticks SET ended_at = $now, outcome = 'failed', detail = 'the learner ended while it ran'
WHERE outcome = 'running'
RETURNING job
"""

_SELECT = "SELECT job, scheduled_at, started_at, ended_at, outcome, detail FROM ticks\n"
SELECT_LAST_TICKS = (
    _SELECT
    + """QUALIFY row_number() OVER (
    PARTITION BY job ORDER BY (outcome = 'running') DESC, scheduled_at DESC
) = 1"""
)
SELECT_LAST_DONE = (
    "SELECT job, max(ended_at) FROM ticks WHERE outcome IN ('done', 'nothing') GROUP BY job"
)
SELECT_LAST_WORKED = (
    _SELECT
    + """WHERE outcome IN ('done', 'failed')
QUALIFY row_number() OVER (PARTITION BY job ORDER BY scheduled_at DESC) = 1"""
)
# A job that fails at every tick is one thing that happens.
SELECT_FAILURES = """
SELECT job, detail, count(*), max(coalesce(ended_at, started_at)) AS happened
FROM ticks WHERE outcome = 'failed'
GROUP BY job, detail, time_bucket(INTERVAL 10 minutes, started_at)
HAVING $before IS NULL OR max(coalesce(ended_at, started_at)) < $before
ORDER BY happened DESC, job LIMIT $limit
"""
SELECT_RECENT = (
    _SELECT
    + """WHERE $job IS NULL OR job = $job
ORDER BY scheduled_at DESC, job LIMIT $limit"""
)
DELETE_TICKS = "DELETE FROM ticks WHERE scheduled_at < $before AND outcome != 'running' RETURNING 1"

PAUSE = """
INSERT INTO pauses (job, paused_by, paused_at) VALUES ($job, $operator, $now)
ON CONFLICT DO NOTHING
"""
RESUME = "DELETE FROM pauses WHERE job = $job RETURNING job"
RESUME_ALL = "DELETE FROM pauses RETURNING job"
SELECT_PAUSES = "SELECT job, paused_by, paused_at FROM pauses ORDER BY job"
IS_PAUSED = "SELECT count(*) FROM pauses WHERE job = $job OR job = $all"


class JobResult(NamedTuple):
    """What a tick did, or why it did nothing: one sentence for log, metric and page."""

    outcome: TickOutcome
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One firing of a schedule. `detail` says what was done, or why nothing was."""

    job: str
    scheduled_at: datetime
    started_at: datetime
    ended_at: datetime | None
    outcome: TickOutcome
    detail: str


class Failures(NamedTuple):
    """A job that failed so many times in a row for one reason."""

    job: str
    detail: str
    times: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Somebody stopped a job, or all of them."""

    job: str
    paused_by: str
    paused_at: datetime


def start_tick(tx: Cursor, *, job: str, scheduled_at: datetime, now: datetime) -> bool:
    """Claim a tick. False when it ran already: then the caller does nothing."""
    return _insert(tx, job, scheduled_at, now, None, "running", "")


def end_tick(
    tx: Cursor,
    *,
    job: str,
    scheduled_at: datetime,
    outcome: TickOutcome,
    detail: str,
    now: datetime,
) -> None:
    tx.execute(
        END_TICK,
        {
            "job": job,
            "scheduled_at": to_db_time(scheduled_at),
            "outcome": outcome,
            "detail": detail,
            "now": to_db_time(now),
        },
    )


def record_tick(
    tx: Cursor,
    *,
    job: str,
    scheduled_at: datetime,
    outcome: TickOutcome,
    detail: str,
    now: datetime,
) -> bool:
    """A tick that started and ended at once, such as a paused or missed one."""
    return _insert(tx, job, scheduled_at, now, now, outcome, detail)


def fail_running_ticks(tx: Cursor, now: datetime) -> list[str]:
    """After a crash: what was running has failed. Returns the jobs."""
    return [row[0] for row in tx.execute(FAIL_RUNNING_TICKS, {"now": to_db_time(now)}).fetchall()]


def last_ticks(tx: Cursor) -> dict[str, Tick]:
    """The newest tick of each job; one that still runs goes before those missed meanwhile."""
    return {tick.job: tick for tick in map(_tick, tx.execute(SELECT_LAST_TICKS).fetchall())}


def last_successes(tx: Cursor) -> dict[str, datetime]:
    """When each job last ended without an error."""
    return {job: from_db_time(at) for job, at in tx.execute(SELECT_LAST_DONE).fetchall()}


def recent_ticks(tx: Cursor, limit: int, job: str | None = None) -> list[Tick]:
    """Newest first."""
    return [
        _tick(row) for row in tx.execute(SELECT_RECENT, {"limit": limit, "job": job}).fetchall()
    ]


def last_worked(tx: Cursor) -> dict[str, Tick]:
    """The newest tick of each job that did something or failed; idle ones are passed over."""
    return {tick.job: tick for tick in map(_tick, tx.execute(SELECT_LAST_WORKED).fetchall())}


def failures(tx: Cursor, limit: int, before: datetime | None = None) -> list[Failures]:
    """Failed ticks, those for the same reason within minutes together. Newest first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    return [
        Failures(job, detail, int(count), from_db_time(at))
        for job, detail, count, at in tx.execute(SELECT_FAILURES, values).fetchall()
    ]


def delete_ticks(tx: Cursor, before: datetime) -> int:
    """Forget old ticks; returns how many."""
    return len(tx.execute(DELETE_TICKS, {"before": to_db_time(before)}).fetchall())


def pause(tx: Cursor, *, job: str, operator: str, now: datetime) -> None:
    """Stop a job, or `ALL_JOBS`. Its ticks are recorded as paused."""
    tx.execute(PAUSE, {"job": job, "operator": operator, "now": to_db_time(now)})


def resume(tx: Cursor, job: str) -> list[str]:
    """Lift the pause of a job; `ALL_JOBS` lifts every pause. Returns what was lifted."""
    rows = tx.execute(RESUME_ALL) if job == ALL_JOBS else tx.execute(RESUME, {"job": job})
    return [row[0] for row in rows.fetchall()]


def pauses(tx: Cursor) -> list[Pause]:
    return [
        Pause(job=job, paused_by=by, paused_at=from_db_time(at))
        for job, by, at in tx.execute(SELECT_PAUSES).fetchall()
    ]


def is_paused(tx: Cursor, job: str) -> bool:
    """Whether the job, or the whole schedule, is paused."""
    row = first_row(tx.execute(IS_PAUSED, {"job": job, "all": ALL_JOBS}))
    return row is not None and row[0] > 0


def _insert(
    tx: Cursor,
    job: str,
    scheduled_at: datetime,
    started_at: datetime,
    ended_at: datetime | None,
    outcome: TickOutcome,
    detail: str,
) -> bool:
    values = {
        "job": job,
        "scheduled_at": to_db_time(scheduled_at),
        "started_at": to_db_time(started_at),
        "ended_at": None if ended_at is None else to_db_time(ended_at),
        "outcome": outcome,
        "detail": detail,
    }
    return bool(tx.execute(INSERT_TICK, values).fetchall())


def _tick(row: tuple[Any, ...]) -> Tick:
    job, scheduled_at, started_at, ended_at, outcome, detail = row
    return Tick(
        job=job,
        scheduled_at=from_db_time(scheduled_at),
        started_at=from_db_time(started_at),
        ended_at=from_db_time_or_none(ended_at),
        outcome=outcome,
        detail=detail,
    )
