"""An e-detector of a broken promise: has agreement fallen below the target, and since when?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# How many times the promised errors each wager expects: a small break, a clear one, a bad one.
ERROR_RATIOS = (1.15, 2.0, 4.0)
FURTHEST = 0.5  # an error rate half-way between the promised one and 1, whatever the ratio
MOST = 700.0  # the exponential of more is no number any more


class Wager(NamedTuple):
    """The state of one lambda. What it has won, summed over all beginnings, and at best."""

    log_evidence: float = -math.inf
    log_product: float = -math.inf  # the largest product of factors up to now
    start: int = 0  # audits before the first factor of that product


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """Evidence that agreement is below `target` from some unknown audit on.

    For each lambda, M_t = (M_{t-1} + 1) (1 + lambda (target - A_t)): the sum over all possible
    beginnings of the product of the factors from there on (Shiryaev-Roberts). As long as each
    audit agrees with probability `target` or more given those before it, the mean over the
    lambdas grows by at most 1 an audit on average, and so the mean number of audits to a false
    alarm at `limit` is at least `limit` (Shin, Ramdas and Rinaldo, E-detectors, NEJSDS 2024).
    After an alarm, or another threshold, begin with a new one.
    """

    target: float  # the promised agreement, in (0, 1)
    wagers: tuple[Wager, ...] = (Wager(),) * len(ERROR_RATIOS)
    seen: int = 0  # audits so far
    highest: float = 0.0  # the most evidence that there ever was
    since: int = 0  # audits before the break, as the highest evidence would have it

    @property
    def evidence(self) -> float:
        """What there is now; an alarm goes by the highest."""
        return float(_evidence([wager.log_evidence for wager in self.wagers]))

    def alarmed(self, limit: float) -> bool:
        """Was there ever evidence of `limit`, the mean number of audits to a false alarm?"""
        return self.highest >= limit

    def after(self, agrees: bool) -> "Detector":
        """The detector one audit later."""
        return self.after_all((agrees,))

    def after_all(self, agrees: Sequence[bool] | NDArray[np.bool_]) -> "Detector":
        """The detector after more audits, in the order in which their labels came."""
        if not len(agrees):
            return self
        wrong = ~np.asarray(agrees, dtype=bool)
        paths = [
            _path(wager, np.where(wrong, *factors), self.seen)
            for wager, factors in zip(self.wagers, log_factors(self.target), strict=True)
        ]
        evidence = _evidence(np.array([path.log_evidence for path in paths]))
        top = int(evidence.argmax())
        highest, since = self.highest, self.since
        if evidence[top] > highest:
            highest = float(evidence[top])
            since = int(max((path.log_product[top], path.start[top]) for path in paths)[1])
        return replace(
            self,
            wagers=tuple(path.last() for path in paths),
            seen=self.seen + wrong.size,
            highest=highest,
            since=since,
        )


def log_factors(target: float) -> list[tuple[float, float]]:
    """The logarithms of 1 + lambda (target - A) for a wrong and a right answer, a pair a lambda.

    lambda = (ratio - 1) / target makes the factor the likelihood ratio of `ratio` times the
    promised errors. Raises ValueError unless the target is within (0, 1).
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"a promised agreement is between 0 and 1, not {target}")
    errors = 1.0 - target
    feared = [min(ratio * errors, errors + FURTHEST * target) for ratio in ERROR_RATIOS]
    return [(math.log(rate / errors), math.log((1.0 - rate) / target)) for rate in feared]


class _Path(NamedTuple):
    """A wager after each of some audits."""

    log_evidence: NDArray[np.float64]
    log_product: NDArray[np.float64]
    start: NDArray[np.int64]

    def last(self) -> Wager:
        return Wager(float(self.log_evidence[-1]), float(self.log_product[-1]), int(self.start[-1]))


def _path(wager: Wager, factors: NDArray[np.float64], seen: int) -> _Path:
    """With S the running sum of log factors: M_t = exp(S_t) (M_0 + sum over j < t of exp(-S_j)).

    The largest product ending at t begins where S was lowest before it.
    """
    total = np.concatenate([[0.0], factors.cumsum()])
    before, now = total[:-1], total[1:]
    sums = np.logaddexp.accumulate(np.concatenate([[wager.log_evidence], -before]))[1:]
    carried = -wager.log_product  # where the earlier product would have put S
    lowest = np.minimum.accumulate(np.minimum(before, carried))
    steps = np.arange(factors.size)
    at = np.maximum.accumulate(np.where(before <= lowest, steps, -1))
    start = np.where(at < 0, wager.start, seen + at)
    return _Path(now + sums, now - lowest, start)


def _evidence(logs: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.exp(np.minimum(logs, MOST)).mean(axis=0)
    return mean
