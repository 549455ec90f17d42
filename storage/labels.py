"""Labels, and what is made from them: curation's input, audits, counts, spend."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from pipelines.curate import LabelledSample
from pipelines.label import OUTSIDE
from pipelines.rates import Purse, purse_of
from pipelines.types import Example, Label, Message, SampleReason, Side
from storage.database import (
    Cursor,
    first_row,
    from_db_time,
    from_db_time_or_none,
    to_db_time,
)

INSERT_LABELS = """
INSERT INTO labels
SELECT
    unnest($event_id), unnest($source), unnest($task), unnest($label), unnest($weight),
    unnest($votes), unnest($teacher_model), unnest($prompt_version), unnest($terms),
    unnest($prompt_tokens), unnest($completion_tokens), unnest($cost), unnest($ledger_key), $now
ON CONFLICT DO NOTHING
RETURNING event_id
"""

MARK_LABELLED = """
UPDATE samples SET status = 'labelled', failure = NULL
WHERE event_id IN (SELECT unnest($event_ids)) AND status <> 'expired'
"""

# A teacher that contradicts itself about a prompt trains nobody with it until a person decides.
# On the held-out side its first answer stays: the second was asked of some only. There also a
# prompt whose answer was no label counts, with none: whatever a student says to it is not what the
# teacher said, and to leave it out would count it as average.
SELECT_LABELLED = """
SELECT
    s.event_id, s.text, l.label, s.group_id, s.side, l.weight, s.user_key, s.reason, s.messages,
    s.segment, s.held_out_pi, s.occurred_at, s.audit_pi, s.sampled_at
FROM samples s JOIN effective_labels l USING (event_id)
WHERE s.task = $task AND s.status = 'labelled' AND l.labelled_at <= $cut_off
    AND l.label IN (SELECT unnest($labels))
    AND NOT (s.side = 'training' AND l.source <> 'correction' AND EXISTS (
        FROM votes v WHERE v.event_id = s.event_id AND v.label IS DISTINCT FROM v.first
    ))
UNION ALL
SELECT
    event_id, text, '', group_id, side, 1.0, user_key, reason, messages, segment, held_out_pi,
    occurred_at, audit_pi, sampled_at
FROM samples
WHERE task = $task AND status = 'failed' AND failure = $outside AND sampled_at <= $cut_off
    AND side = 'held_out' AND held_out_pi IS NOT NULL
ORDER BY sampled_at, event_id
"""

SELECT_LABELS_OF = """
SELECT event_id, label FROM effective_labels WHERE event_id IN (SELECT unnest($event_ids))
"""

COUNT_LABELS = """
SELECT
    count(*) FILTER (WHERE l.source = 'bought'),
    count(*) FILTER (WHERE l.source = 'given'),
    count(*) FILTER (WHERE l.source = 'correction'),
    count(*) FILTER (WHERE s.side = 'training'),
    count(DISTINCT s.group_id) FILTER (WHERE s.side = 'held_out' AND s.held_out_pi IS NOT NULL),
    max(l.labelled_at)
FROM effective_labels l JOIN samples s USING (event_id)
WHERE l.task = ? AND s.reason <> 'pool'
"""

# Audited events that a student assessed, with its verdict where the label has come: what live
# agreement rests on. Where the teacher gave no label the student has not said what it said.
SELECT_AUDITED = """
SELECT s.occurred_at, s.confidence, s.audit_pi,
    coalesce(s.student_label = l.label, CASE WHEN s.failure = $outside THEN false END),
    CASE WHEN s.served_by = 'student' AND s.unsure <> '' THEN 'forced' ELSE s.served_by END
FROM samples s LEFT JOIN effective_labels l USING (event_id)
WHERE s.task = $task AND s.student_version = $version AND s.audit_pi IS NOT NULL
    AND s.occurred_at >= $since AND s.occurred_at < $until
ORDER BY coalesce(l.labelled_at, CASE WHEN s.failure = $outside THEN s.sampled_at END) NULLS LAST,
    s.event_id
"""

# Audits within the student's reach, in the order in which their labels came: what a promise is
# watched with. Whoever answered in the end: above the threshold the student does.
SELECT_JUDGED = """
SELECT s.event_id, l.labelled_at, s.confidence, s.student_label = l.label,
    s.served_by = 'student' AND s.unsure = ''
FROM samples s JOIN effective_labels l USING (event_id)
WHERE s.task = $task AND s.student_version = $version AND s.audit_pi IS NOT NULL
    AND s.reach IS DISTINCT FROM 'beyond' AND s.unsure NOT IN ('empty', 'too_long')
    AND s.occurred_at >= $since AND l.labelled_at >= $labelled_from
ORDER BY l.labelled_at, s.event_id
"""

# Up to the oldest that waits for its label. Labels of escalated events come at once, and taking
# those first would compare two versions on what one of them was unsure about.
SELECT_AUDITED_PROMPTS = """
SELECT s.event_id, s.occurred_at, s.messages, s.student_label, l.label
FROM samples s JOIN effective_labels l USING (event_id)
WHERE s.task = $task AND s.student_version = $version AND s.audit_pi IS NOT NULL
    AND s.occurred_at >= $since AND s.occurred_at < coalesce((
        SELECT min(occurred_at) FROM samples
        WHERE task = $task AND student_version = $version AND audit_pi IS NOT NULL
            AND status = 'pending' AND occurred_at >= $since
    ), 'infinity'::TIMESTAMP)
ORDER BY s.occurred_at, s.event_id
LIMIT $limit
"""

# What came lately, and when the first of it did.
SELECT_GAINED = """
SELECT
    count(*) FILTER (WHERE s.side = 'training'),
    count(DISTINCT s.group_id) FILTER (WHERE s.side = 'held_out' AND s.held_out_pi IS NOT NULL),
    min(l.labelled_at)
FROM effective_labels l JOIN samples s USING (event_id)
WHERE s.task = $task AND l.labelled_at >= $since
"""

COUNT_TRAINING = """
SELECT count(*)
FROM effective_labels l JOIN samples s USING (event_id)
WHERE l.task = $task AND s.side = 'training' AND l.labelled_at <= $until
"""

COUNT_BOUGHT = """
SELECT s.reason, count(*)
FROM labels l JOIN samples s USING (event_id)
WHERE l.source = 'bought' AND ($task IS NULL OR l.task = $task) AND l.labelled_at >= $since
GROUP BY s.reason
"""

SELECT_SPEND = """
SELECT coalesce(sum(cost), 0), count(*), coalesce(sum(tokens), 0)
FROM (
    SELECT cost, prompt_tokens + completion_tokens AS tokens FROM labels
    WHERE source = 'bought' AND task = $task AND labelled_at >= $since
    UNION ALL
    SELECT cost, tokens FROM votes WHERE task = $task AND voted_at >= $since AND tokens > 0
)
"""

SELECT_MEAN_COST = """
SELECT avg(cost) FROM labels WHERE task = $task AND cost > 0
"""

SELECT_MEAN_BOUGHT = """
SELECT avg(prompt_tokens + completion_tokens), avg(cost)
FROM labels WHERE source = 'bought' AND ledger_key IS NOT NULL AND labelled_at >= $since
"""


class LabelCounts(NamedTuple):
    """Labels of one task. `training` counts the training side, whoever paid."""

    bought: int
    given: int
    corrected: int
    training: int
    held_out_groups: int

    @property
    def used(self) -> int:
        """Every teacher answer that was used."""
        return self.bought + self.given + self.corrected


class Audited(NamedTuple):
    """One audited event: predicted agreement, inclusion probability, did the student agree.

    `agrees` is None while its label has not come. `server`: student, teacher or app; `forced`
    where the student answered unsure, because nobody else could be asked.
    """

    occurred_at: datetime
    predicted: float
    inclusion_probability: float
    agrees: bool | None
    server: str


class Judged(NamedTuple):
    """One audited event whose label has come."""

    event_id: str
    labelled_at: datetime
    confidence: float
    agrees: bool
    promised: bool  # the student served it, and was sure


class AuditedPrompt(NamedTuple):
    """One audited event with what was asked, what the student said, and its label."""

    event_id: str
    occurred_at: datetime
    messages: tuple[Message, ...]
    student_label: str
    label: str


class Spend(NamedTuple):
    """What labels cost in a window."""

    money: float
    calls: int
    tokens: int


def add_labels(tx: Cursor, task: str, labels: Sequence[Label], now: datetime) -> int:
    """Store labels and mark their samples. A label that is there already is not added again."""
    if not labels:
        return 0
    columns: dict[str, list[object]] = {
        name: [getattr(label, name) for label in labels]
        for name in (
            "event_id", "source", "label", "weight", "votes", "teacher_model", "prompt_version",
            "terms", "prompt_tokens", "completion_tokens", "cost", "ledger_key",
        )
    }  # fmt: skip
    columns["task"] = [task] * len(labels)
    rows = tx.execute(INSERT_LABELS, {**columns, "now": to_db_time(now)}).fetchall()
    tx.execute(MARK_LABELLED, {"event_ids": [label.event_id for label in labels]})
    return len(rows)


def labels_of(tx: Cursor, event_ids: Sequence[str]) -> dict[str, str]:
    """The label that counts, of those of these events that have one."""
    if not event_ids:
        return {}
    return dict(tx.execute(SELECT_LABELS_OF, {"event_ids": list(event_ids)}).fetchall())


def labelled_samples(
    tx: Cursor, task: str, labels: Sequence[str], cut_off: datetime
) -> list[LabelledSample]:
    """Everything labelled up to the cut-off with one of the task's labels, oldest first."""
    values = {"task": task, "labels": list(labels), "cut_off": to_db_time(cut_off)}
    rows = tx.execute(SELECT_LABELLED, {**values, "outside": OUTSIDE}).fetchall()
    return [
        LabelledSample(
            Example(
                event_id=row[0],
                text=row[1],
                label=row[2],
                group_id=row[3],
                side=Side(row[4]),
                weight=row[5],
                user_key=row[6],
                reason=SampleReason(row[7]),
                messages=msgspec.json.decode(row[8], type=tuple[Message, ...]),
            ),
            row[9],
            row[10],
            from_db_time(row[11]),
            row[12],
        )
        for row in rows
    ]


def count_labels(tx: Cursor, task: str) -> LabelCounts:
    row = first_row(tx.execute(COUNT_LABELS, [task]))
    assert row is not None
    return LabelCounts(*(int(value) for value in row[:5]))


def audited(tx: Cursor, task: str, version: str, since: datetime, until: datetime) -> list[Audited]:
    """Audit draws of [since, until), in the order of their labels, without them last; naive UTC."""
    rows = tx.execute(
        SELECT_AUDITED,
        {
            "task": task,
            "version": version,
            "since": to_db_time(since),
            "until": to_db_time(until),
            "outside": OUTSIDE,
        },
    ).fetchall()
    return [Audited(*row) for row in rows]


def judged_audits(
    tx: Cursor, task: str, version: str, since: datetime, labelled_from: datetime
) -> list[Judged]:
    """Audits of events from `since` on whose labels came from a moment on, in that order."""
    values = {
        "task": task,
        "version": version,
        "since": to_db_time(since),
        "labelled_from": to_db_time(labelled_from),
    }
    return [
        Judged(event_id, from_db_time(at), confidence, bool(agrees), bool(promised))
        for event_id, at, confidence, agrees, promised in tx.execute(
            SELECT_JUDGED, values
        ).fetchall()
    ]


def audited_prompts(
    tx: Cursor, task: str, version: str, since: datetime, limit: int
) -> list[AuditedPrompt]:
    """The oldest audit draws from `since` on with their labels, up to one that waits for its."""
    values = {"task": task, "version": version, "since": to_db_time(since), "limit": limit}
    return [
        AuditedPrompt(
            event_id=event_id,
            occurred_at=from_db_time(occurred_at),
            messages=msgspec.json.decode(messages, type=tuple[Message, ...]),
            student_label=student_label,
            label=label,
        )
        for event_id, occurred_at, messages, student_label, label in tx.execute(
            SELECT_AUDITED_PROMPTS, values
        ).fetchall()
    ]


def gained_since(tx: Cursor, task: str, since: datetime) -> tuple[int, int, datetime | None]:
    """Training labels and held-out groups that came since a moment, and when the first did."""
    row = first_row(tx.execute(SELECT_GAINED, {"task": task, "since": to_db_time(since)}))
    return (int(row[0]), int(row[1]), from_db_time_or_none(row[2])) if row else (0, 0, None)


def count_training(tx: Cursor, task: str, until: datetime) -> int:
    """Labels of the training side that were there at a moment."""
    row = first_row(tx.execute(COUNT_TRAINING, {"task": task, "until": to_db_time(until)}))
    return int(row[0]) if row else 0


def bought_by_purse(tx: Cursor, task: str | None, since: datetime) -> Counter[Purse]:
    """Labels bought since a moment, by whose share of the budget paid; None: of all tasks."""
    values = {"task": task, "since": to_db_time(since)}
    found: Counter[Purse] = Counter()
    for reason, count in tx.execute(COUNT_BOUGHT, values).fetchall():
        found[purse_of(reason)] += int(count)
    return found


def mean_bought(tx: Cursor, since: datetime) -> tuple[float, float]:
    """Tokens and money that a bought label took on average since a moment; 0 without any."""
    row = first_row(tx.execute(SELECT_MEAN_BOUGHT, {"since": to_db_time(since)}))
    return (float(row[0] or 0.0), float(row[1] or 0.0)) if row else (0.0, 0.0)


def spend_since(tx: Cursor, task: str, since: datetime) -> Spend:
    row = first_row(tx.execute(SELECT_SPEND, {"task": task, "since": to_db_time(since)}))
    assert row is not None
    return Spend(float(row[0]), int(row[1]), int(row[2]))


def mean_label_cost(tx: Cursor, task: str) -> float:
    """Money that one teacher answer costs on average; 0 where prices are not set."""
    row = first_row(tx.execute(SELECT_MEAN_COST, {"task": task}))
    return float(row[0]) if row and row[0] is not None else 0.0
