"""Guards: what is trusted of a champion for now, and why. All SQL about them."""

from dataclasses import fields
from datetime import datetime
from typing import Any

from pipelines.guard import LASTING, Guard, GuardKind
from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

COLUMNS = ", ".join(field.name for field in fields(Guard))

SELECT_OPEN = f"SELECT {COLUMNS} FROM guards WHERE ended_at IS NULL ORDER BY raised_at, kind"

UPSERT_GUARD = f"""
INSERT INTO guards ({COLUMNS})
VALUES ($task, $student, $kind, $raised_at, $since, $threshold, $reason, $changed_at, NULL)
ON CONFLICT DO UPDATE SET
    threshold = excluded.threshold, reason = excluded.reason, changed_at = excluded.changed_at
"""

END_GUARD = """
UPDATE guards SET ended_at = $now, changed_at = $now
WHERE task = $task AND student = $student AND kind = $kind AND ended_at IS NULL
"""

# Nobody is asked about them any more, and nothing has become of them.
END_OF_OTHERS = """
UPDATE guards SET ended_at = $now
WHERE task = $task AND student <> $champion AND ended_at IS NULL
"""

SELECT_LAST_ENDED = """
SELECT max(ended_at) FROM guards WHERE task = $task AND student = $student AND kind = $kind
"""

SELECT_LAST_ALARM = """
SELECT max(raised_at) FROM guards WHERE task = $task AND student = $student AND kind = 'audits'
"""

# As `Guard.is_shift` has it.
IS_SHIFT = "(kind <> 'mix' OR coalesce(ended_at, $now) - raised_at >= to_seconds($lasting))"

SELECT_LAST_SHIFT = f"SELECT max(since) FROM guards WHERE task = $task AND {IS_SHIFT}"

SELECT_SHIFTS = f"""
SELECT {COLUMNS}
FROM guards WHERE ($before IS NULL OR changed_at < $before) AND {IS_SHIFT}
ORDER BY changed_at DESC, task, kind LIMIT $limit
"""


def open_guards(tx: Cursor) -> dict[tuple[str, str], tuple[Guard, ...]]:
    """Those that stand, by task and student."""
    found: dict[tuple[str, str], tuple[Guard, ...]] = {}
    for row in tx.execute(SELECT_OPEN).fetchall():
        guard = _guard(row)
        key = (guard.task, guard.student)
        found[key] = (*found.get(key, ()), guard)
    return found


def put_guard(tx: Cursor, guard: Guard) -> None:
    """Raise it, or change one that stands."""
    tx.execute(
        UPSERT_GUARD,
        {
            "task": guard.task,
            "student": guard.student,
            "kind": guard.kind,
            "raised_at": to_db_time(guard.raised_at),
            "since": to_db_time(guard.since),
            "threshold": guard.threshold,
            "reason": guard.reason,
            "changed_at": to_db_time(guard.changed_at),
        },
    )


def end_guard(tx: Cursor, guard: Guard, now: datetime) -> None:
    values = {"task": guard.task, "student": guard.student, "kind": guard.kind}
    tx.execute(END_GUARD, {**values, "now": to_db_time(now)})


def end_guards_of_others(tx: Cursor, task: str, champion: str, now: datetime) -> None:
    """Those of students that do not serve any more."""
    tx.execute(END_OF_OTHERS, {"task": task, "champion": champion, "now": to_db_time(now)})


def last_ended(tx: Cursor, task: str, student: str, kind: GuardKind) -> datetime | None:
    """When the last guard of this kind ended."""
    values = {"task": task, "student": student, "kind": kind}
    row = first_row(tx.execute(SELECT_LAST_ENDED, values))
    return from_db_time_or_none(row[0]) if row else None


def last_alarm(tx: Cursor, task: str, student: str) -> datetime | None:
    """When the audits of a student raised an alarm last."""
    row = first_row(tx.execute(SELECT_LAST_ALARM, {"task": task, "student": student}))
    return from_db_time_or_none(row[0]) if row else None


def last_shift(tx: Cursor, task: str, now: datetime) -> datetime | None:
    """Since when the traffic is another one, as the newest guard of any student has it."""
    row = first_row(tx.execute(SELECT_LAST_SHIFT, {"task": task, **_lasting(now)}))
    return from_db_time_or_none(row[0]) if row else None


def recent_shifts(
    tx: Cursor, now: datetime, limit: int, before: datetime | None = None
) -> list[Guard]:
    """Guards that were no passing chance, those that changed last first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    rows = tx.execute(SELECT_SHIFTS, {**values, **_lasting(now)}).fetchall()
    return [_guard(row) for row in rows]


def _lasting(now: datetime) -> dict[str, object]:
    return {"now": to_db_time(now), "lasting": LASTING.total_seconds()}


def _guard(row: tuple[Any, ...]) -> Guard:
    task, student, kind, raised_at, since, threshold, reason, changed_at, ended_at = row
    return Guard(
        task=task,
        student=student,
        kind=kind,
        raised_at=from_db_time(raised_at),
        since=from_db_time(since),
        threshold=threshold,
        reason=reason,
        changed_at=from_db_time(changed_at),
        ended_at=from_db_time_or_none(ended_at),
    )
