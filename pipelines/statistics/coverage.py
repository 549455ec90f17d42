"""Trusted coverage: the share of all assessed traffic at or above the cascade threshold.

The edges of the confidence histogram are defined here, once: the traffic sums count by them
and the threshold is always one of them, so that coverage can be read from the sums.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.intervals import wilson_share
from pipelines.types import Estimate

# Lower edges of the bins; the last bin ends at 1, which it includes. Finer near 1, where
# thresholds for high targets lie. Stored histograms depend on them: change only by migration.
CONFIDENCE_EDGES: tuple[float, ...] = (
    *(i / 100 for i in range(0, 50, 5)),
    *(i / 100 for i in range(50, 90, 2)),
    *(i / 100 for i in range(90, 99)),
    *(0.99, 0.992, 0.994, 0.996, 0.998, 0.999),
)
CONFIDENCE_BINS = len(CONFIDENCE_EDGES)
_EDGES = np.array(CONFIDENCE_EDGES)


def confidence_bin(confidence: float) -> int:
    """The histogram bin of one confidence. What is not a probability is trusted least."""
    if not 0.0 <= confidence <= 1.0:
        return 0
    return bisect_right(CONFIDENCE_EDGES, confidence) - 1


def confidence_bins(confidences: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
    """`confidence_bin` of many."""
    values = np.asarray(confidences, dtype=np.float64)
    usable = (values >= 0.0) & (values <= 1.0)
    found = np.searchsorted(_EDGES, np.where(usable, values, 0.0), side="right") - 1
    return found.astype(np.int64)


def confidence_histogram(confidences: Sequence[float]) -> tuple[int, ...]:
    """Counts per bin."""
    counts = np.bincount(confidence_bins(confidences), minlength=CONFIDENCE_BINS)
    return tuple(int(count) for count in counts)


def trusted_coverage(
    counts: Sequence[int], threshold: float | None, *, alpha: float = 0.05
) -> Estimate:
    """Share of the counted traffic at or above `threshold`, with Wilson's interval.

    Without a threshold nothing is trusted. A threshold between two edges counts from the
    next edge on, so that coverage is never overstated.
    """
    if len(counts) != CONFIDENCE_BINS:
        raise ValueError(f"a confidence histogram has {CONFIDENCE_BINS} bins, not {len(counts)}")
    first = CONFIDENCE_BINS if threshold is None else bisect_left(CONFIDENCE_EDGES, threshold)
    total = sum(counts)
    share = wilson_share(sum(counts[first:]), total, alpha)
    if threshold is None and total:
        return Estimate(value=0.0, low=0.0, high=0.0, n=total)
    return share


def coverage_drop(certified: float, live: Estimate) -> float:
    """How far trusted coverage has surely fallen below what was certified; 0 if it may not have.

    Measured from the upper end of the live interval: a quiet minute is not a drop.
    """
    return max(0.0, certified - live.high) if live.n else 0.0
