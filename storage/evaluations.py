"""Evaluations of student versions, and whose turn it is at the gate. All SQL about them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipelines.statistics.spending import Turn, shares
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

# Each candidate with each champion that it was compared with, in the order of the first look.
SELECT_COMPARISONS = """
SELECT digest, champion, min(evaluated_at), count(*), coalesce(bool_or(report IN (
    SELECT report FROM decisions
    WHERE task = $task AND action = 'approve' AND report IS NOT NULL)), false)
FROM evaluations WHERE task = $task AND compared
GROUP BY digest, champion ORDER BY min(evaluated_at), digest
"""


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


def gate_turn(tx: Cursor, task: str, digest: str, champion: str | None, now: datetime) -> Turn:
    """The turn of a candidate that is about to be judged against the champion.

    Against another champion it is another comparison: it has a share of its own.
    """
    rows = tx.execute(SELECT_COMPARISONS, {"task": task}).fetchall()
    known = [(row[0], row[1]) for row in rows]
    begun = [from_db_time(row[2]) for row in rows]
    if (digest, champion) in known:
        at = known.index((digest, champion))
        looks = int(rows[at][3])
    else:
        at, looks = len(rows), 0
        begun.append(now)
    of_year = [index for index, moment in enumerate(begun) if moment.year == begun[at].year]
    return Turn(
        attempt=1 + of_year.index(at),
        look=1 + looks,
        share=shares(begun)[at],
        promotions=sum(rows[index][4] for index in of_year if index < len(rows)),
    )
