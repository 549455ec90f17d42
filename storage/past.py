"""Requests that went past the student: how many, and why. All SQL about them."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from storage.database import Cursor, to_db_time

ADD_PAST = """
INSERT INTO traffic_past
SELECT unnest($minute), unnest($task), unnest($reason), unnest($requests)
"""
SELECT_PAST = """
SELECT reason, sum(requests) FROM traffic_past
WHERE task = $task AND minute >= $since GROUP BY reason
"""
DELETE_OLD = "DELETE FROM traffic_past WHERE minute < ?"

PastKey = tuple[datetime, str, str]  # minute, task, reason


def add_past(tx: Cursor, past: Mapping[PastKey, int]) -> None:
    if past:
        tx.execute(
            ADD_PAST,
            {
                "minute": [to_db_time(minute) for minute, _, _ in past],
                "task": [task for _, task, _ in past],
                "reason": [reason for _, _, reason in past],
                "requests": list(past.values()),
            },
        )


def past_since(tx: Cursor, task: str, since: datetime) -> Counter[str]:
    """Requests by reason."""
    rows = tx.execute(SELECT_PAST, {"task": task, "since": to_db_time(since)}).fetchall()
    return Counter({str(reason): int(count) for reason, count in rows})


def delete_past_before(tx: Cursor, moment: datetime) -> None:
    tx.execute(DELETE_OLD, [to_db_time(moment)])
