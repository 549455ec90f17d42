"""Guards: thresholds stricter than the approved one, while traffic or audits call for them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple

from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

# `novel` leaves the threshold as it is: what is beyond reach is not trusted anyway.
GuardKind = Literal["mix", "audits", "novel"]

SELECT_OPEN = """
SELECT task, student, kind, raised_at, since, threshold, reason, changed_at
FROM guards WHERE ended_at IS NULL ORDER BY raised_at, kind
"""

UPSERT_GUARD = """
INSERT INTO guards
VALUES ($task, $student, $kind, $raised_at, $since, $threshold, $reason, $changed_at, NULL)
ON CONFLICT DO UPDATE SET
    threshold = excluded.threshold, reason = excluded.reason, changed_at = excluded.changed_at
"""

END_GUARD = """
UPDATE guards SET ended_at = $now, changed_at = $now
WHERE task = $task AND student = $student AND kind = $kind AND ended_at IS NULL
"""

SELECT_LAST_ENDED = """
SELECT max(ended_at) FROM guards WHERE task = $task AND student = $student AND kind = $kind
"""

SELECT_LAST_ALARM = """
SELECT max(raised_at) FROM guards WHERE task = $task AND student = $student AND kind = 'audits'
"""

SELECT_LAST_RAISED = "SELECT max(since) FROM guards WHERE task = $task"

SELECT_CHANGES = """
SELECT task, student, kind, raised_at, since, threshold, reason, changed_at, ended_at
FROM guards WHERE $before IS NULL OR changed_at < $before
ORDER BY changed_at DESC, task, kind LIMIT $limit
"""


class Guard(NamedTuple):
    """What is trusted of one student for now. Later rows are of other students, or came later."""

    task: str
    student: str
    kind: GuardKind
    raised_at: datetime
    since: datetime  # when what it is about began, as far as that can be told
    threshold: float | None  # None: nothing is trusted
    reason: str
    changed_at: datetime
    ended_at: datetime | None = None


def open_guards(tx: Cursor) -> dict[tuple[str, str], tuple[Guard, ...]]:
    """Those that stand, by task and student."""
    found: dict[tuple[str, str], tuple[Guard, ...]] = {}
    for row in tx.execute(SELECT_OPEN).fetchall():
        guard = _guard((*row, None))
        key = (guard.task, guard.student)
        found[key] = (*found.get(key, ()), guard)
    return found


def threshold_in_force(approved: float | None, guards: tuple[Guard, ...]) -> float | None:
    """The strictest of the approved threshold and the guards'; None: nothing is trusted."""
    wanted = [approved, *(guard.threshold for guard in guards)]
    known = [threshold for threshold in wanted if threshold is not None]
    return max(known) if len(known) == len(wanted) else None


def put_guard(tx: Cursor, guard: Guard) -> None:
    """Raise it, or change one that stands."""
    values = guard._asdict()
    del values["ended_at"]
    for name in ("raised_at", "since", "changed_at"):
        values[name] = to_db_time(values[name])
    tx.execute(UPSERT_GUARD, values)


def end_guard(tx: Cursor, guard: Guard, now: datetime) -> None:
    values = {"task": guard.task, "student": guard.student, "kind": guard.kind}
    tx.execute(END_GUARD, {**values, "now": to_db_time(now)})


def last_ended(tx: Cursor, task: str, student: str, kind: GuardKind) -> datetime | None:
    """When the last guard of this kind ended."""
    values = {"task": task, "student": student, "kind": kind}
    row = first_row(tx.execute(SELECT_LAST_ENDED, values))
    return from_db_time_or_none(row[0]) if row else None


def last_alarm(tx: Cursor, task: str, student: str) -> datetime | None:
    """When the audits of a student raised an alarm last."""
    row = first_row(tx.execute(SELECT_LAST_ALARM, {"task": task, "student": student}))
    return from_db_time_or_none(row[0]) if row else None


def last_shift(tx: Cursor, task: str) -> datetime | None:
    """Since when the traffic is another one: the beginning of the newest guard of any student."""
    row = first_row(tx.execute(SELECT_LAST_RAISED, {"task": task}))
    return from_db_time_or_none(row[0]) if row else None


def recent_guards(tx: Cursor, limit: int, before: datetime | None = None) -> list[Guard]:
    """Those that changed last, newest first."""
    values: Mapping[str, object] = {
        "limit": limit,
        "before": None if before is None else to_db_time(before),
    }
    return [_guard(row) for row in tx.execute(SELECT_CHANGES, dict(values)).fetchall()]


def _guard(row: tuple[object, ...]) -> Guard:
    task, student, kind, raised_at, since, threshold, reason, changed_at, ended_at = row
    return Guard(
        str(task),
        str(student),
        kind,  # type: ignore[arg-type]
        from_db_time(raised_at),  # type: ignore[arg-type]
        from_db_time(since),  # type: ignore[arg-type]
        threshold,  # type: ignore[arg-type]
        str(reason),
        from_db_time(changed_at),  # type: ignore[arg-type]
        from_db_time_or_none(ended_at),  # type: ignore[arg-type]
    )
