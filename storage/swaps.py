"""Swaps: what each gateway said to serve, and from when on. All SQL about them."""

from dataclasses import dataclass
from datetime import datetime

from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

INSERT_SWAP = """
INSERT INTO swaps (gateway, task, reported_at, version, problem)
VALUES ($gateway, $task, $now, $version, $problem)
ON CONFLICT DO NOTHING
"""

SELECT_LAST = """
SELECT task, arg_max(version, reported_at), arg_max(problem, reported_at)
FROM swaps WHERE gateway = $gateway GROUP BY task
"""

# Gateways that change over together are one line.
SELECT_RECENT = """
SELECT task, version, problem, count(DISTINCT gateway), max(reported_at) AS happened
FROM swaps
GROUP BY task, version, problem, time_bucket(INTERVAL 1 minute, reported_at)
HAVING $before IS NULL OR max(reported_at) < $before
ORDER BY happened DESC, task, version LIMIT $limit
"""

SELECT_NEWEST = "SELECT max(reported_at) FROM swaps WHERE task = $task"

DELETE_OLD = "DELETE FROM swaps WHERE reported_at < ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A change of what gateways serve. `problem` says why what is published is not served."""

    task: str
    version: str  # '' = no student
    problem: str
    gateways: int
    at: datetime


def add_swap(
    tx: Cursor, *, gateway: str, task: str, version: str, problem: str, now: datetime
) -> None:
    tx.execute(
        INSERT_SWAP,
        {
            "gateway": gateway,
            "task": task,
            "version": version,
            "problem": problem,
            "now": to_db_time(now),
        },
    )


def last_reported(tx: Cursor, gateway: str) -> dict[str, tuple[str, str]]:
    """What a gateway said last: (version, problem) by task."""
    rows = tx.execute(SELECT_LAST, {"gateway": gateway}).fetchall()
    return {task: (version, problem) for task, version, problem in rows}


def recent_swaps(tx: Cursor, limit: int, before: datetime | None = None) -> list[Swap]:
    """Newest first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    return [
        Swap(task=task, version=version, problem=problem, gateways=count, at=from_db_time(at))
        for task, version, problem, count, at in tx.execute(SELECT_RECENT, values).fetchall()
    ]


def last_swap(tx: Cursor, task: str) -> datetime | None:
    """When a gateway last changed what it serves for a task."""
    row = first_row(tx.execute(SELECT_NEWEST, {"task": task}))
    return from_db_time_or_none(row[0]) if row else None


def delete_swaps_before(tx: Cursor, moment: datetime) -> None:
    tx.execute(DELETE_OLD, [to_db_time(moment)])
