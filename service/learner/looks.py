"""What earlier looks at a version met: which held-out items, and with which outcome."""

from collections.abc import Iterable, Sequence

from pipelines.evaluate import departed_pairs
from pipelines.types import HeldOutItem, PairCounts
from storage.artifacts import Artifacts
from storage.evaluations import StoredEvaluation
from storage.reports import read_items, read_report


def new_items(artifacts: Artifacts, last: StoredEvaluation, items: Sequence[HeldOutItem]) -> int:
    """How many were not there at the last look; some may be, also where the window is full."""
    met = read_items(artifacts, last.report)
    if not met:  # a report of an earlier version
        return len(items) - last.items
    return sum(item.event_id not in met for item in items)


def departed(
    artifacts: Artifacts,
    past: Iterable[StoredEvaluation],
    champion: str | None,
    items: Sequence[HeldOutItem],
    kept: Iterable[str] = (),
) -> PairCounts:
    """What past comparisons with this champion found on items that are not here now.

    `kept`: what of the pool is here.
    """
    reports = (
        read_report(artifacts, one.report).evaluation
        for one in past
        if one.compared
        and one.champion == champion
        and artifacts.exists("report", one.report)  # else pruned long ago
    )
    return departed_pairs(reports, items, kept)
