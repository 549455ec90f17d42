"""Evaluations of student versions, and whose turn it is at the gate. All SQL about them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pipelines.types import Verdict
from storage.database import Cursor, first_row, from_db_time, to_db_time

INSERT_EVALUATION = """
INSERT INTO evaluations (
    task, digest, attempt, champion, snapshot, items, report, verdict, promotable,
    compared, threshold, coverage, evaluated_at
) VALUES (
    $task, $digest, $attempt, $champion, $snapshot, $items, $report, $verdict, $promotable,
    $compared, $threshold, $coverage, $evaluated_at
)
"""

_SELECT_EVALUATION = """
SELECT task, digest, attempt, champion, snapshot, items, report, verdict, promotable,
    compared, threshold, coverage, evaluated_at
FROM evaluations
"""

SELECT_LATEST_EVALUATION = (
    _SELECT_EVALUATION
    + "WHERE task = $task AND digest = $digest ORDER BY evaluated_at DESC LIMIT 1"
)

SELECT_LATEST_EVALUATIONS = (
    _SELECT_EVALUATION
    + """WHERE task = $task
QUALIFY row_number() OVER (PARTITION BY digest ORDER BY evaluated_at DESC) = 1"""
)

SELECT_EVALUATION_BY_REPORT = (
    _SELECT_EVALUATION
    + """WHERE task = $task AND digest = $digest AND report = $report
ORDER BY evaluated_at DESC LIMIT 1"""
)

SELECT_EVALUATIONS = (
    _SELECT_EVALUATION + "WHERE task = $task AND digest = $digest ORDER BY evaluated_at"
)

SELECT_RECENT_EVALUATIONS = (
    _SELECT_EVALUATION
    + """WHERE $before IS NULL OR evaluated_at < $before
ORDER BY evaluated_at DESC LIMIT $limit"""
)

# Candidates judged since the last approval, in the order of their first judgement.
SELECT_JUDGED = """
SELECT digest, count(*) FROM evaluations
WHERE task = $task AND compared AND evaluated_at > coalesce(
    (SELECT max(decided_at) FROM decisions WHERE task = $task AND action = 'approve'),
    TIMESTAMP '0001-01-01')
GROUP BY digest ORDER BY min(evaluated_at), digest
"""


class GateTurn(NamedTuple):
    """The how-manieth candidate since the last approval, and the how-manieth look at it."""

    attempt: int
    look: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvaluation:
    """One evaluation of a version. `report` is the content hash of the report artifact."""

    task: str
    digest: str
    attempt: int
    champion: str | None
    snapshot: str
    items: int
    report: str
    verdict: Verdict
    promotable: bool
    compared: bool  # whether it used its items up
    threshold: float | None
    coverage: float
    evaluated_at: datetime


def add_evaluation(tx: Cursor, evaluation: StoredEvaluation) -> None:
    tx.execute(
        INSERT_EVALUATION,
        {
            "task": evaluation.task,
            "digest": evaluation.digest,
            "attempt": evaluation.attempt,
            "champion": evaluation.champion,
            "snapshot": evaluation.snapshot,
            "items": evaluation.items,
            "report": evaluation.report,
            "verdict": evaluation.verdict,
            "promotable": evaluation.promotable,
            "compared": evaluation.compared,
            "threshold": evaluation.threshold,
            "coverage": evaluation.coverage,
            "evaluated_at": to_db_time(evaluation.evaluated_at),
        },
    )


def latest_evaluation(tx: Cursor, task: str, digest: str) -> StoredEvaluation | None:
    row = first_row(tx.execute(SELECT_LATEST_EVALUATION, {"task": task, "digest": digest}))
    return None if row is None else _evaluation(row)


def latest_evaluations(tx: Cursor, task: str) -> dict[str, StoredEvaluation]:
    """The latest evaluation of each version, by the student's digest."""
    rows = tx.execute(SELECT_LATEST_EVALUATIONS, {"task": task}).fetchall()
    return {found.digest: found for found in map(_evaluation, rows)}


def evaluation_by_report(
    tx: Cursor, task: str, digest: str, report: str
) -> StoredEvaluation | None:
    """The evaluation whose report an approval looked at."""
    row = first_row(
        tx.execute(SELECT_EVALUATION_BY_REPORT, {"task": task, "digest": digest, "report": report})
    )
    return None if row is None else _evaluation(row)


def evaluations_of(tx: Cursor, task: str, digest: str) -> list[StoredEvaluation]:
    """Every evaluation of one version, oldest first."""
    values = {"task": task, "digest": digest}
    return [_evaluation(row) for row in tx.execute(SELECT_EVALUATIONS, values).fetchall()]


def recent_evaluations(
    tx: Cursor, limit: int, before: datetime | None = None
) -> list[StoredEvaluation]:
    """Of all tasks, newest first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    rows = tx.execute(SELECT_RECENT_EVALUATIONS, values).fetchall()
    return [_evaluation(row) for row in rows]


def _evaluation(row: tuple[Any, ...]) -> StoredEvaluation:
    *plain, evaluated_at = row
    names = StoredEvaluation.__dataclass_fields__
    found = dict(zip(list(names)[:-1], plain, strict=True))
    return StoredEvaluation(**found, evaluated_at=from_db_time(evaluated_at))


def gate_turn(tx: Cursor, task: str, digest: str) -> GateTurn:
    """The turn of a candidate that is about to be judged."""
    rows = tx.execute(SELECT_JUDGED, {"task": task}).fetchall()
    judged = [row[0] for row in rows]
    if digest in judged:
        return GateTurn(
            attempt=judged.index(digest) + 1, look=int(rows[judged.index(digest)][1]) + 1
        )
    return GateTurn(attempt=len(judged) + 1, look=1)
