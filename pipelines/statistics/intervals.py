"""Exact and score intervals for shares and for paired yes-or-no outcomes, and Holm's rule.

scipy is left out on purpose: it would add 80 MB to the learner. It is the oracle in tests.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Estimate, PairCounts

BISECTIONS = 60  # halves [0, 1] down to the precision of a double


def normal_quantile(probability: float) -> float:
    """The standard normal quantile."""
    return NormalDist().inv_cdf(probability)


def regularized_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by Lentz's continued fraction."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    # The fraction converges fast only left of the mean; the other side is its mirror image.
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - regularized_beta(b, a, 1.0 - x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c = 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + even * d, tiny)
        c = _away_from_zero(1.0 + even / c, tiny)
        result *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / _away_from_zero(1.0 + odd * d, tiny)
        c = _away_from_zero(1.0 + odd / c, tiny)
        result *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return result


def _away_from_zero(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p)."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return regularized_beta(n - k, k + 1, 1.0 - p)


def binomial_at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    if k <= 0:
        return 1.0
    if k > n:
        return 0.0
    return regularized_beta(k, n - k + 1, p)


def exact_low(k: int, n: int, alpha: float) -> float:
    """Clopper-Pearson's lower bound of a share, at one-sided level `alpha`."""
    if k <= 0 or n <= 0:
        return 0.0
    return _solve(lambda p: binomial_at_least(k, n, p) > alpha, 0.0, 1.0)[0]


def exact_high(k: int, n: int, alpha: float) -> float:
    """Clopper-Pearson's upper bound of a share, at one-sided level `alpha`."""
    if k >= n or n <= 0:
        return 1.0
    return _solve(lambda p: binomial_at_most(k, n, p) <= alpha, 0.0, 1.0)[1]


def exact_share(k: int, n: int, alpha: float) -> Estimate:
    """A share with its exact interval, `alpha` on each side."""
    if n <= 0:
        return Estimate(value=math.nan, low=0.0, high=1.0, n=0)
    return Estimate(value=k / n, low=exact_low(k, n, alpha), high=exact_high(k, n, alpha), n=n)


def wilson_share(k: int, n: int, alpha: float) -> Estimate:
    """A share with Wilson's score interval, `alpha` in both tails together."""
    if n <= 0:
        return Estimate(value=math.nan, low=0.0, high=1.0, n=0)
    z2 = normal_quantile(1.0 - alpha / 2.0) ** 2
    share = k / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the score bound is the share itself; rounding must not put it outside.
    low = 0.0 if k <= 0 else max(0.0, middle - half)
    high = 1.0 if k >= n else min(1.0, middle + half)
    return Estimate(value=share, low=low, high=high, n=n)


def _solve(beyond: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Bracket the point where `beyond` turns from False to True."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        if beyond(middle):
            high = middle
        else:
            low = middle
    return low, high


def count_pairs(candidate: Sequence[bool], other: Sequence[bool]) -> PairCounts:
    """How often one is right where the other is wrong."""
    wins = sum(1 for a, b in zip(candidate, other, strict=True) if a and not b)
    losses = sum(1 for a, b in zip(candidate, other, strict=True) if b and not a)
    return PairCounts(wins=wins, losses=losses, ties=len(candidate) - wins - losses)


def _tango_z(pairs: PairCounts, difference: float) -> float:
    """Tango's score statistic of `difference` (Statistics in Medicine 17, 1998)."""
    n, b, c = pairs.total, pairs.wins, pairs.losses
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    losing = (root - linear) / (4 * n)
    variance = n * (2 * losing + difference * (1 - difference))
    distance = b - c - n * difference
    if variance <= 0.0:
        return 0.0 if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def paired_low(pairs: PairCounts, alpha: float) -> float:
    """Tango's lower bound of the paired difference, at one-sided level `alpha`."""
    if pairs.total <= 0:
        return -1.0
    z = normal_quantile(1.0 - alpha)
    value = (pairs.wins - pairs.losses) / pairs.total
    return _solve(lambda d: _tango_z(pairs, d) <= z, -1.0, value)[0]


def paired_high(pairs: PairCounts, alpha: float) -> float:
    """Tango's upper bound of the paired difference, at one-sided level `alpha`."""
    mirrored = PairCounts(wins=pairs.losses, losses=pairs.wins, ties=pairs.ties)
    return -paired_low(mirrored, alpha)


def paired_difference(pairs: PairCounts, alpha: float) -> Estimate:
    """Candidate minus other, with Tango's interval, `alpha` in both tails together."""
    if pairs.total <= 0:
        return Estimate(value=math.nan, low=-1.0, high=1.0, n=0)
    return Estimate(
        value=(pairs.wins - pairs.losses) / pairs.total,
        low=paired_low(pairs, alpha / 2.0),
        high=paired_high(pairs, alpha / 2.0),
        n=pairs.total,
    )


def weighted_difference(
    candidate: Sequence[bool],
    other: Sequence[bool],
    probabilities: Sequence[float],
    alpha: float,
) -> Estimate:
    """Candidate minus other where items were drawn with different probabilities.

    Hajek's ratio estimate with its linearized variance: an approximation for some hundred
    items. The gate does not use it; it thins to equal probability and stays exact.
    """
    if len(candidate) < 2:
        return Estimate(value=math.nan, low=-1.0, high=1.0, n=len(candidate))
    weights: NDArray[np.float64] = 1.0 / np.asarray(probabilities, dtype=np.float64)
    gains = np.asarray(candidate, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    value = float(np.sum(weights * gains) / np.sum(weights))
    residuals = weights * (gains - value)
    # One imagined win and loss keep the width honest when no pair differs.
    spread = float(np.sum(residuals**2)) + 2.0 * float(np.mean(weights)) ** 2
    half = normal_quantile(1.0 - alpha / 2.0) * math.sqrt(spread) / float(np.sum(weights))
    return Estimate(
        value=value, low=max(-1.0, value - half), high=min(1.0, value + half), n=len(candidate)
    )


def sign_test(pairs: PairCounts) -> float:
    """Exact one-sided p-value of "the candidate is not better" (McNemar, conditional)."""
    return binomial_at_least(pairs.wins, pairs.wins + pairs.losses, 0.5)


def holm(p_values: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Which hypotheses Holm's step-down rule rejects, in the order given."""
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        if not p_values[index] <= alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return tuple(rejected)
