"""The history of estimates: what the charts show. All SQL about it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pipelines.types import Estimate
from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

INSERT_ESTIMATE = """
INSERT INTO estimates VALUES (
    $task, $at, $coverage, $coverage_low, $coverage_high,
    $agreement, $agreement_low, $agreement_high, $spend
) ON CONFLICT DO NOTHING
"""

# The last moment of each bucket stands for it: a chart has only so many pixels.
SELECT_HISTORY = """
SELECT estimated_at, coverage, coverage_low, coverage_high,
    agreement, agreement_low, agreement_high, spend
FROM estimates WHERE task = $task AND estimated_at >= $since
QUALIFY row_number() OVER (
    PARTITION BY time_bucket(to_seconds($bucket_seconds), estimated_at)
    ORDER BY estimated_at DESC
) = 1
ORDER BY estimated_at
"""

SELECT_FIRST = (
    "SELECT min(estimated_at) FROM estimates WHERE task = $task AND estimated_at >= $since"
)

DELETE_OLD = "DELETE FROM estimates WHERE estimated_at < ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEstimate:
    """One moment. None where there was nothing to measure; `n` is not kept and reads 0."""

    at: datetime
    coverage: Estimate | None
    agreement: Estimate | None
    spend: float


def add_estimate(tx: Cursor, task: str, estimate: StoredEstimate) -> None:
    coverage, agreement = estimate.coverage, estimate.agreement
    tx.execute(
        INSERT_ESTIMATE,
        {
            "task": task,
            "at": to_db_time(estimate.at),
            "coverage": coverage.value if coverage else None,
            "coverage_low": coverage.low if coverage else None,
            "coverage_high": coverage.high if coverage else None,
            "agreement": agreement.value if agreement else None,
            "agreement_low": agreement.low if agreement else None,
            "agreement_high": agreement.high if agreement else None,
            "spend": estimate.spend,
        },
    )


def estimate_history(
    tx: Cursor, task: str, since: datetime, bucket: timedelta = timedelta(seconds=1)
) -> list[StoredEstimate]:
    """Oldest first, one moment for each bucket."""
    values = {
        "task": task,
        "since": to_db_time(since),
        "bucket_seconds": int(bucket.total_seconds()),
    }
    rows = tx.execute(SELECT_HISTORY, values).fetchall()
    return [
        StoredEstimate(
            at=from_db_time(row[0]),
            coverage=_estimate(row[1:4]),
            agreement=_estimate(row[4:7]),
            spend=row[7],
        )
        for row in rows
    ]


def first_estimate(tx: Cursor, task: str, since: datetime) -> datetime | None:
    """When the history of a window begins."""
    row = first_row(tx.execute(SELECT_FIRST, {"task": task, "since": to_db_time(since)}))
    return from_db_time_or_none(row[0]) if row else None


def delete_estimates_before(tx: Cursor, moment: datetime) -> None:
    tx.execute(DELETE_OLD, [to_db_time(moment)])


def _estimate(values: tuple[float | None, ...]) -> Estimate | None:
    value, low, high = values
    if value is None or low is None or high is None:
        return None
    return Estimate(value=value, low=low, high=high, n=0)
