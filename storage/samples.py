"""Samples: the events that were chosen, and what became of them. All SQL about them."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from pipelines.rates import Purse
from pipelines.types import Message, Sample, SampleReason
from storage.database import Cursor, first_row, from_db_time_or_none, to_db_time

# One statement per batch: unnest is tens of times faster than executemany.
INSERT_SAMPLES = """
INSERT INTO samples
SELECT
    unnest($event_id), unnest($task), unnest($occurred_at), $now, unnest($messages),
    unnest($text), unnest($reason), unnest($audit_pi), unnest($held_out_pi),
    unnest($learning_pi), unnest($policy_version), unnest($group_id), unnest($side),
    unnest($segment), unnest($served_by), unnest($student_version), unnest($student_label),
    unnest($confidence), unnest($failure_probability), unnest($user_key), unnest($attributes),
    unnest($topic), unnest($partition), unnest($source_offset), unnest($status), NULL,
    unnest($unsure), unnest($reach), unnest($pool_pi), unnest($asked)
ON CONFLICT DO NOTHING
RETURNING event_id
"""


# Audits first, then held-out items, then training data, of which what is novel goes first; the
# oldest of each, and no more of each than its purse has left, so that training data never spends
# what evidence needs.
SELECT_PENDING = """
SELECT event_id, task, messages, reason, asked
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY purse ORDER BY reason <> 'novel', sampled_at, event_id
    ) AS place
    FROM (
        SELECT *,
            CASE
                WHEN reason IN ('audit', 'held_out') THEN reason
                WHEN reason = 'disagreement' THEN 'held_out'
                ELSE 'learning'
            END AS purse
        FROM samples
        WHERE status = 'pending' AND task IN (SELECT unnest($tasks))
    )
)
WHERE place <= CASE purse WHEN 'audit' THEN $audit WHEN 'held_out' THEN $held_out ELSE $learning END
ORDER BY CASE
        WHEN reason = 'audit' THEN 0 WHEN purse = 'held_out' THEN 1 WHEN reason = 'novel' THEN 2
        ELSE 3
    END, sampled_at, event_id
LIMIT $limit
"""

SELECT_TASKS = "SELECT event_id, task FROM samples WHERE event_id IN (SELECT unnest($event_ids))"

COUNT_BY_STATUS = "SELECT task, status, count(*) FROM samples GROUP BY ALL"
COUNT_PENDING = """
SELECT reason, count(*) FROM samples WHERE task = $task AND status = 'pending' GROUP BY reason
"""
COUNT_BY_REASON = "SELECT task, reason, count(*) FROM samples GROUP BY ALL"

# Rows, not events: the draws bound them.
SELECT_DRAWN = """
SELECT reason, count(*) FROM samples
WHERE task = $task AND sampled_at >= $since GROUP BY reason ORDER BY count(*) DESC, reason
"""
SELECT_LAST_DRAWN = "SELECT max(sampled_at) FROM samples WHERE task = $task"

SET_STATUS = """
UPDATE samples SET status = $status, failure = $failure
WHERE event_id IN (SELECT unnest($event_ids)) AND status IN ('pending', 'held', 'failed')
"""

REQUEUE_HELD = "UPDATE samples SET status = 'pending', failure = NULL WHERE status = 'held'"

EXPIRE = """
UPDATE samples SET status = 'expired', messages = '[]', text = '', asked = '{}'
WHERE status IN ('pending', 'failed') AND sampled_at < ?
"""
DELETE_OLD_LABELLED = "DELETE FROM samples WHERE status = 'labelled' AND sampled_at < ?"

OF_SAMPLES: tuple[Purse, ...] = ("audit", "held_out", "learning")


class PendingSample(NamedTuple):
    """What the teacher is to be asked."""

    event_id: str
    task: str
    messages: tuple[Message, ...]
    reason: str
    asked: Mapping[str, Any] = MappingProxyType({})


def add_samples(tx: Cursor, samples: Sequence[Sample], now: datetime) -> set[str]:
    """Store new samples and return the ids that were new. All but the pool's are pending."""
    if not samples:
        return set()
    columns: dict[str, list[object]] = {
        "event_id": [s.event.event_id for s in samples],
        "task": [s.event.task for s in samples],
        "occurred_at": [to_db_time(s.event.occurred_at) for s in samples],
        "messages": [msgspec.json.encode(s.event.messages).decode() for s in samples],
        "text": [s.text for s in samples],
        "reason": [s.reason.value for s in samples],
        "audit_pi": [s.draws.audit for s in samples],
        "held_out_pi": [s.draws.held_out for s in samples],
        "learning_pi": [s.draws.learning for s in samples],
        "policy_version": [s.policy_version for s in samples],
        "group_id": [s.group_id for s in samples],
        "side": [s.side.value for s in samples],
        "segment": [s.assessment.segment if s.assessment else "" for s in samples],
        "served_by": [s.event.served_by for s in samples],
        "student_version": [s.event.student.version if s.event.student else None for s in samples],
        "student_label": [s.event.student.label if s.event.student else None for s in samples],
        "confidence": [s.event.student.confidence if s.event.student else None for s in samples],
        "failure_probability": [
            s.assessment.failure_probability if s.assessment else None for s in samples
        ],
        "user_key": [s.event.user_key for s in samples],
        "attributes": [json.dumps(dict(s.event.attributes)) for s in samples],
        "topic": [s.event.source.topic for s in samples],
        "partition": [s.event.source.partition for s in samples],
        "source_offset": [s.event.source.offset for s in samples],
        "status": ["kept" if s.reason is SampleReason.POOL else "pending" for s in samples],
        "unsure": [s.event.student.unsure if s.event.student else "" for s in samples],
        "reach": [s.event.student.reach if s.event.student else None for s in samples],
        "pool_pi": [s.draws.pool for s in samples],
        "asked": [msgspec.json.encode(s.event.asked).decode() for s in samples],
    }
    rows = tx.execute(INSERT_SAMPLES, {**columns, "now": to_db_time(now)}).fetchall()
    return {event_id for (event_id,) in rows}


def pending_samples(
    tx: Cursor, tasks: Collection[str], limit: int, left: Mapping[Purse, int] | None = None
) -> list[PendingSample]:
    """Samples of these tasks: those of a task that is gone would block the queue.

    `left`: how many labels each purse still pays for today; None: nobody pays.
    """
    values: dict[str, object] = {"tasks": list(tasks), "limit": limit}
    for purse in OF_SAMPLES:
        values[purse] = left[purse] if left else limit
    rows = tx.execute(SELECT_PENDING, values).fetchall()
    return [
        PendingSample(
            event_id=event_id,
            task=task,
            messages=msgspec.json.decode(messages, type=tuple[Message, ...]),
            reason=reason,
            asked=msgspec.json.decode(asked or "{}"),
        )
        for event_id, task, messages, reason, asked in rows
    ]


def set_status(
    tx: Cursor, event_ids: Sequence[str], status: str, failure: str | None = None
) -> None:
    """Move pending, held or failed samples on; those already labelled stay labelled."""
    if event_ids:
        tx.execute(SET_STATUS, {"event_ids": list(event_ids), "status": status, "failure": failure})


def requeue_held(tx: Cursor) -> None:
    """Let the next relabel look at what is held again; the ledger says what may be asked."""
    tx.execute(REQUEUE_HELD)


def tasks_of(tx: Cursor, event_ids: Sequence[str]) -> dict[str, str]:
    """The task of each sample that is there."""
    if not event_ids:
        return {}
    return dict(tx.execute(SELECT_TASKS, {"event_ids": list(event_ids)}).fetchall())


def count_by_status(tx: Cursor) -> dict[tuple[str, str], int]:
    """Samples by (task, status)."""
    return {(row[0], row[1]): int(row[2]) for row in tx.execute(COUNT_BY_STATUS).fetchall()}


def count_pending(tx: Cursor, task: str) -> Counter[str]:
    """Samples of a task that wait for the teacher, by reason."""
    rows = tx.execute(COUNT_PENDING, {"task": task}).fetchall()
    return Counter({reason: int(count) for reason, count in rows})


def count_by_reason(tx: Cursor) -> dict[tuple[str, str], int]:
    """Samples by (task, reason)."""
    return {(row[0], row[1]): int(row[2]) for row in tx.execute(COUNT_BY_REASON).fetchall()}


def expire_unlabelled(tx: Cursor, before: datetime) -> None:
    """Forget the text of samples that nobody labelled in time. The rows stay: non-response."""
    tx.execute(EXPIRE, [to_db_time(before)])


def delete_labelled(tx: Cursor, before: datetime) -> None:
    tx.execute(DELETE_OLD_LABELLED, [to_db_time(before)])


def drawn_since(tx: Cursor, task: str, since: datetime) -> dict[str, int]:
    """How many samples each reason chose, most first."""
    values = {"task": task, "since": to_db_time(since)}
    return {reason: int(count) for reason, count in tx.execute(SELECT_DRAWN, values).fetchall()}


def last_drawn(tx: Cursor, task: str) -> datetime | None:
    """When the newest sample of a task was stored."""
    row = first_row(tx.execute(SELECT_LAST_DRAWN, {"task": task}))
    return from_db_time_or_none(row[0]) if row else None
