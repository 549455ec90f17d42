"""The cascade threshold held against live audits: the loosest one that they prove again."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.certify import items_needed
from pipelines.statistics.coverage import CONFIDENCE_BINS, CONFIDENCE_EDGES, confidence_bins

# The sequence begins with the edge that a third of the audits lie above: strict enough to hold
# where looser ones do not, and not so strict that evidence comes by drops.
STARTING_SHARE = 1 / 3
# Shares of the errors that the promise allows. One wager expects each, all are mixed evenly.
ERROR_SHARES = np.array([0.05, 0.2, 0.4, 0.6, 0.8])


class Recertified(NamedTuple):
    """What the audits prove."""

    threshold: float | None  # an edge of the confidence histogram; None: nothing is proven
    audits: int  # at or above the approved threshold
    needed: int  # further ones without an error, at or above the first edge, until that holds


def recertify(
    confidences: Sequence[float],
    agrees: Sequence[bool],
    *,
    approved: float,
    target: float,
    alpha: float = 0.05,
) -> Recertified:
    """The loosest threshold, not below `approved`, above which agreement is proven to be > target.

    Takes audits in the order in which their labels came; may be called after every one. Against
    each edge, "agreement at or above it is at most the target", wealth grows with each audit
    there by 1 + lambda (A - target): an e-process, which under that claim ever reaches 1 / alpha
    with probability at most alpha. Edges are proven from strict to loose up to the first that
    never got there, so that any of them is wrong with probability at most alpha, at all looks
    together (Xu, Karampatziakis and Mineiro, Active, anytime-valid risk controlling prediction
    sets, NeurIPS 2024; in the fixed sequence of Learn then test, Angelopoulos et al., AOAS 2025).

    The first edge is chosen by the confidences of so many audits that none could hold earlier,
    and by no outcome. Raises ValueError where lengths differ or target or alpha are impossible.
    """
    if len(confidences) != len(agrees):
        raise ValueError(f"{len(confidences)} confidences for {len(agrees)} outcomes")
    if not (0.0 < target < 1.0 and 0.0 < alpha < 1.0):
        raise ValueError(f"no agreement of {target} can be proven with an error of {alpha}")
    bins = confidence_bins(confidences)
    loosest = int(np.searchsorted(CONFIDENCE_EDGES, approved))
    counted = bins >= loosest
    bins, right = bins[counted], np.asarray(agrees, dtype=bool)[counted]
    first = _first_edge(bins[: items_needed(target, 1.0 - alpha)], loosest)
    threshold = None
    for edge in range(first, loosest - 1, -1):
        if _mixed(_log_wealth(right[bins >= edge], target)).max() < -math.log(alpha):
            break
        if (bins == edge).any():  # proven only as low as the audits reach
            threshold = CONFIDENCE_EDGES[edge]
    strictest = _log_wealth(right[bins >= first], target)[-1]
    needed = 0 if threshold is not None else _needed(strictest, target, alpha)
    return Recertified(threshold, right.size, needed)


def _first_edge(bins: NDArray[np.int64], loosest: int) -> int:
    """The strictest with a third of these at or above it."""
    if not bins.size:
        return min(loosest, CONFIDENCE_BINS - 1)
    return int(np.quantile(bins, 1.0 - STARTING_SHARE, method="lower"))


def _log_wealth(right: NDArray[np.bool_], target: float) -> NDArray[np.float64]:
    """Before each wrong answer, where wealth is highest, and now; a column a wager."""
    win, lose = _log_factors(target)
    at = np.append(np.flatnonzero(~right), right.size)
    wrong = np.arange(at.size)
    logs: NDArray[np.float64] = np.outer(at - wrong, win) + np.outer(wrong, lose)
    return logs


def _log_factors(target: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of 1 + lambda (A - target) with lambda = (1 - share) / target, for right and for wrong."""
    errors = ERROR_SHARES * (1.0 - target)
    return np.log((1.0 - errors) / target), np.log(ERROR_SHARES)


def _mixed(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    mixed: NDArray[np.float64] = np.logaddexp.reduce(logs, axis=-1) - math.log(ERROR_SHARES.size)
    return mixed


def _needed(logs: NDArray[np.float64], target: float, alpha: float) -> int:
    """So many right answers in a row bring this wealth to 1 / alpha."""
    win, _ = _log_factors(target)
    short, enough = 0, 1
    while _mixed(logs + enough * win) < -math.log(alpha):
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        if _mixed(logs + middle * win) < -math.log(alpha):
            short = middle
        else:
            enough = middle
    return enough
