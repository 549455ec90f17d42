"""Votes: what the teacher said when it was asked the same question again. All SQL about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from pipelines.types import Message
from storage.database import Cursor, first_row, to_db_time

BLIND = 1  # drawn whatever anybody answered: how far the teacher agrees with itself
SECOND = 2  # asked because examples or a student spoke against the first answer

INSERT_VOTES = """
INSERT INTO votes
SELECT
    unnest($event_id), unnest($repeat), $task, unnest($first), unnest($label),
    unnest($prompt_version), unnest($tokens), unnest($cost), unnest($ledger_key), $now
ON CONFLICT DO NOTHING
"""

# The teacher's own word `l`, bought before given; a person's is none of its answers.
TEACHERS = """
    l.source <> 'correction' AND NOT (l.source = 'given' AND EXISTS (
        FROM labels b WHERE b.event_id = l.event_id AND b.source = 'bought'))
"""

# Whoever answered, and whatever. Both answers are to the present wording of the task.
_BLIND = f"""
SELECT s.event_id, s.messages, l.label, s.asked
FROM samples s JOIN labels l USING (event_id)
WHERE s.task = $task AND s.status = 'labelled' AND l.prompt_version = $prompt_version AND {TEACHERS}
    AND NOT EXISTS (FROM votes v WHERE v.event_id = s.event_id AND v.repeat = {BLIND})
"""
SELECT_HELD_OUT = (
    _BLIND + "AND s.held_out_pi IS NOT NULL ORDER BY l.labelled_at, s.event_id LIMIT $limit"
)
# The same ones at every look. While nobody but the teacher answers, all that comes is audited.
SELECT_AUDITS = (
    _BLIND
    + """AND s.audit_pi IS NOT NULL AND l.labelled_at >= $since
    AND hash(s.event_id) % 10000 < 10000 * $share
ORDER BY l.labelled_at, s.event_id LIMIT $limit
"""
)

# Training data whose label the other examples speak against, then what a student did not give, the
# surest student first.
SELECT_DOUBTED = f"""
SELECT s.event_id, s.messages, l.label, s.asked
FROM samples s JOIN labels l USING (event_id)
    LEFT JOIN doubts d ON d.event_id = s.event_id AND d.task = s.task AND d.label = l.label
WHERE s.task = $task AND s.status = 'labelled' AND s.side = 'training'
    AND (s.student_label <> l.label OR d.event_id IS NOT NULL) AND {TEACHERS}
    AND NOT EXISTS (FROM votes v WHERE v.event_id = s.event_id)
    AND NOT EXISTS (FROM labels c WHERE c.event_id = s.event_id AND c.source = 'correction')
ORDER BY d.margin DESC NULLS LAST, s.confidence DESC, s.event_id
LIMIT $limit
"""

SELECT_FIRST = f"""
SELECT l.event_id, l.label FROM labels l
WHERE l.event_id IN (SELECT unnest($event_ids)) AND {TEACHERS}
"""

# Of equal questions one was asked, and the others know its answer: to count each would be to count
# one pair of answers many times.
COUNT_BLIND = f"""
SELECT s.segment, count(*) FILTER (WHERE v.label IS NOT DISTINCT FROM v.first), count(*)
FROM (
    FROM votes WHERE task = $task AND repeat = {BLIND} AND prompt_version = $prompt_version
    QUALIFY row_number() OVER (PARTITION BY ledger_key ORDER BY tokens DESC, event_id) = 1
) v JOIN samples s USING (event_id)
GROUP BY s.segment
"""

COUNT_ASKED = f"""
SELECT count(DISTINCT ledger_key) FROM votes
WHERE task = $task AND repeat = {BLIND} AND prompt_version = $prompt_version
"""

COUNT_PAID_SINCE = """
SELECT count(*) FROM votes
WHERE ($task IS NULL OR task = $task) AND voted_at >= $since AND tokens > 0
"""

# A person's word against the teacher's first, wherever there are both.
COUNT_CORRECTED = f"""
SELECT s.segment, count(*) FILTER (WHERE c.label <> l.label), count(*)
FROM labels c JOIN labels l USING (event_id) JOIN samples s USING (event_id)
WHERE c.task = $task AND c.source = 'correction' AND {TEACHERS}
GROUP BY s.segment
"""

# Two answers of the teacher that are not the same, and no word of a person yet.
PARKED = """
    v.label IS DISTINCT FROM v.first
    AND NOT EXISTS (FROM labels c WHERE c.event_id = v.event_id AND c.source = 'correction')
"""
SELECT_PARKED = f"""
SELECT s.event_id, s.text, v.first, v.label, s.student_label
FROM votes v JOIN samples s USING (event_id)
WHERE v.task = $task AND s.side = 'training' AND s.status = 'labelled' AND {PARKED}
ORDER BY v.voted_at DESC, s.event_id LIMIT $limit
"""
COUNT_PARKED = f"""
SELECT count(DISTINCT v.event_id) FROM votes v JOIN samples s USING (event_id)
WHERE v.task = $task AND s.side = 'training' AND s.status = 'labelled' AND {PARKED}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One more answer of the teacher; `label` None: it was none of the task's labels."""

    event_id: str
    repeat: int
    first: str
    label: str | None
    prompt_version: str
    tokens: int
    cost: float
    ledger_key: str


class Repeatable(NamedTuple):
    """A labelled sample that the teacher may be asked about again."""

    event_id: str
    messages: tuple[Message, ...]
    first: str
    asked: Mapping[str, Any]


class Parked(NamedTuple):
    """A prompt on which the teacher contradicts itself: it trains nobody until a person decides."""

    event_id: str
    text: str
    first: str
    second: str | None
    student: str | None


class Compared(NamedTuple):
    """How often two words about one prompt were the same, in one segment."""

    segment: str
    hits: int
    of: int


def first_answers(tx: Cursor, event_ids: Sequence[str]) -> dict[str, str]:
    """The teacher's own label of each of these events that has one."""
    if not event_ids:
        return {}
    return dict(tx.execute(SELECT_FIRST, {"event_ids": list(event_ids)}).fetchall())


def add_votes(tx: Cursor, task: str, votes: Sequence[Vote], now: datetime) -> None:
    if not votes:
        return
    names = ("event_id", "repeat", "first", "label", "prompt_version", "tokens", "cost")
    columns: dict[str, object] = {
        name: [getattr(vote, name) for vote in votes] for name in (*names, "ledger_key")
    }
    tx.execute(INSERT_VOTES, {**columns, "task": task, "now": to_db_time(now)})


def held_out_to_ask(tx: Cursor, task: str, prompt_version: str, limit: int) -> list[Repeatable]:
    """Labelled held-out items that were not asked about again, the oldest label first."""
    values = {"task": task, "prompt_version": prompt_version, "limit": limit}
    return [_repeatable(row) for row in tx.execute(SELECT_HELD_OUT, values).fetchall()]


def audits_to_ask(
    tx: Cursor, task: str, prompt_version: str, *, since: datetime, share: float, limit: int
) -> list[Repeatable]:
    """A share of the audits that were labelled since a moment and not asked about again."""
    values = {"task": task, "prompt_version": prompt_version, "share": share, "limit": limit}
    rows = tx.execute(SELECT_AUDITS, {**values, "since": to_db_time(since)}).fetchall()
    return [_repeatable(row) for row in rows]


def doubted(tx: Cursor, task: str, limit: int) -> list[Repeatable]:
    """Training labels that examples or a student speak against, not asked about again yet."""
    rows = tx.execute(SELECT_DOUBTED, {"task": task, "limit": limit}).fetchall()
    return [_repeatable(row) for row in rows]


def asked_blindly(tx: Cursor, task: str, prompt_version: str) -> int:
    """How many questions of the present wording were asked again, drawn blindly."""
    values = {"task": task, "prompt_version": prompt_version}
    row = first_row(tx.execute(COUNT_ASKED, values))
    return int(row[0]) if row else 0


def same_again(tx: Cursor, task: str, prompt_version: str) -> list[Compared]:
    """How often the teacher said the same again, by segment, of what was drawn blindly."""
    values = {"task": task, "prompt_version": prompt_version}
    return [Compared(*row) for row in tx.execute(COUNT_BLIND, values).fetchall()]


def corrected(tx: Cursor, task: str) -> list[Compared]:
    """How often a person's word was not the teacher's, by segment, where there are both."""
    return [Compared(*row) for row in tx.execute(COUNT_CORRECTED, {"task": task}).fetchall()]


def votes_since(tx: Cursor, task: str | None, since: datetime) -> int:
    """Paid calls that asked again, of one task or of all."""
    values = {"task": task, "since": to_db_time(since)}
    row = first_row(tx.execute(COUNT_PAID_SINCE, values))
    return int(row[0]) if row else 0


def parked(tx: Cursor, task: str, limit: int) -> list[Parked]:
    """Training data on which the teacher contradicts itself, newest first."""
    values = {"task": task, "limit": limit}
    return [Parked(*row) for row in tx.execute(SELECT_PARKED, values).fetchall()]


def count_parked(tx: Cursor, task: str) -> int:
    row = first_row(tx.execute(COUNT_PARKED, {"task": task}))
    return int(row[0]) if row else 0


def _repeatable(row: Sequence[object]) -> Repeatable:
    event_id, messages, first, asked = row
    return Repeatable(
        str(event_id),
        msgspec.json.decode(str(messages), type=tuple[Message, ...]),
        str(first),
        msgspec.json.decode(str(asked or "{}")),
    )
