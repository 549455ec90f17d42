"""Held-out events that are kept without asking for a label, and leave together. SQL about them.

They are samples of the reason `pool`, of the status `kept`, until a label is asked for. An event
that an audit chose too is in the pool as well, under the audit's reason.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final

from pipelines.label import OUTSIDE
from pipelines.pool import PoolItem, Standing
from pipelines.types import HeldOutItem
from storage.database import Cursor, from_db_time, to_db_time

# One of each near-duplicate group, its newest.
SELECT_POOL = """
SELECT s.event_id, s.group_id, s.text, l.label, s.segment, s.pool_pi, s.occurred_at, s.status,
    s.reason, s.failure IS NOT DISTINCT FROM $outside
FROM samples s LEFT JOIN effective_labels l USING (event_id)
WHERE s.task = $task AND s.pool_pi IS NOT NULL AND s.status <> 'expired'
    AND s.occurred_at >= $since
QUALIFY row_number() OVER (PARTITION BY s.group_id ORDER BY s.sampled_at DESC, s.event_id) = 1
ORDER BY s.sampled_at, s.event_id
"""

ASK_FOR = """
UPDATE samples SET status = 'pending', reason = 'disagreement'
WHERE event_id IN (SELECT unnest($event_ids)) AND status = 'kept'
"""

COUNT_AWAITED = """
SELECT count(*) FROM samples
WHERE event_id IN (SELECT unnest($event_ids)) AND status = 'pending'
"""

COUNT_DISAGREEMENTS = """
SELECT count(*) FILTER (WHERE s.status = 'pending'),
    count(*) FILTER (WHERE l.labelled_at >= $since)
FROM samples s LEFT JOIN labels l ON l.event_id = s.event_id AND l.source = 'bought'
WHERE s.task = $task AND s.reason = 'disagreement'
"""

# Whatever became of them: if those that were labelled stayed longer, what is left of an old day
# would be where two students differed.
_LEAVING = """
SELECT event_id FROM samples WHERE pool_pi IS NOT NULL
QUALIFY sampled_at < $before
    OR row_number() OVER (PARTITION BY task ORDER BY sampled_at DESC, event_id) > $most
"""
DELETE_LEAVING = f"DELETE FROM samples WHERE reason = 'pool' AND event_id IN ({_LEAVING})"
RELEASE_LEAVING = f"UPDATE samples SET pool_pi = NULL WHERE event_id IN ({_LEAVING})"

BEGINNING: Final = datetime(1970, 1, 1)  # naive UTC, as the database's
# What a status means for a label that is needed; of one that is there it does not matter.
STANDINGS: Final[dict[str, Standing]] = {"kept": "unasked", "pending": "awaited"}


def pool_of(tx: Cursor, task: str, since: datetime | None) -> list[PoolItem]:
    """The pool of one task, oldest first; of events from a moment on."""
    from_when = BEGINNING if since is None else to_db_time(since)
    values = {"task": task, "since": from_when, "outside": OUTSIDE}
    return [
        PoolItem(
            item=HeldOutItem(
                event_id=event_id,
                group_id=group_id,
                text=text,
                label=label or "",
                segment=segment,
                inclusion_probability=pi,
                occurred_at=from_db_time(occurred_at),
            ),
            # An answer that is no label is known as well: then nobody is right.
            standing="labelled" if label or outside else STANDINGS.get(status, "missing"),
            bought=reason == "disagreement",
        )
        for (
            event_id,
            group_id,
            text,
            label,
            segment,
            pi,
            occurred_at,
            status,
            reason,
            outside,
        ) in tx.execute(SELECT_POOL, values).fetchall()
    ]


def ask_for(tx: Cursor, event_ids: Collection[str]) -> None:
    """Let the teacher be asked about kept events on which two students differ."""
    if event_ids:
        tx.execute(ASK_FOR, {"event_ids": list(event_ids)})


def count_awaited(tx: Cursor, event_ids: Collection[str]) -> int:
    """How many of these still wait for the teacher. What is held waits for a person."""
    if not event_ids:
        return 0
    return int(tx.execute(COUNT_AWAITED, {"event_ids": list(event_ids)}).fetchall()[0][0])


def count_disagreements(tx: Cursor, task: str, since: datetime) -> tuple[int, int]:
    """Labels where two students differ: those that are awaited, and those bought since."""
    values = {"task": task, "since": to_db_time(since)}
    awaited, bought = tx.execute(COUNT_DISAGREEMENTS, values).fetchall()[0]
    return int(awaited), int(bought)


def leave_pool(tx: Cursor, before: datetime, most: int) -> None:
    """End the stay of what is older, and of all but the newest `most` of each task.

    What no label was asked for is deleted; the rest is as any other sample from then on.
    """
    values = {"before": to_db_time(before), "most": most}
    tx.execute(DELETE_LEAVING, values)
    tx.execute(RELEASE_LEAVING, values)
