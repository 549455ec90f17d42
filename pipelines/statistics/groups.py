"""Many small groups, judged together: whether any of them got worse, though none shows it alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.types import PairCounts

DRAWS = 3_999  # p-values are multiples of 2 / (DRAWS + 1)
ROUNDING = 1e-9
WORST = 0.1  # of the groups, looked at beside all of them


def worse_in_some_group(groups: Sequence[PairCounts], seed: int = 0) -> float:
    """p-value of "the candidate is worse in none of the groups".

    A group's part is the squared excess of losses over wins in its own standard deviation, a gain
    counting as nothing: gains in large groups do not hide losses in small ones. The parts are
    summed over all groups (a one-sided chi-bar-square; Silvapulle and Sen, Constrained Statistical
    Inference, 2005), which sees losses that are spread, and over the worst tenth, which sees few
    groups that lose much; the smaller p-value counts twice (Bonferroni). Both sums grow with every
    loss, so the null that is hardest to tell from a loss is a fair coin in each group, given how
    many pairs differ there: p-values are by simulation of that, valid whatever the sizes (Phipson
    and Smyth, 2010). 1 where no pair differs.
    """
    losses = np.array([pairs.losses for pairs in groups], dtype=np.int64)
    differing = losses + np.array([pairs.wins for pairs in groups], dtype=np.int64)
    losses, differing = losses[differing > 0], differing[differing > 0]
    if not differing.size:
        return 1.0
    drawn = np.random.default_rng(seed).binomial(differing, 0.5, size=(DRAWS, differing.size))
    parts, ours = np.sort(_parts(drawn, differing), axis=1), np.sort(_parts(losses, differing))
    worst = max(1, round(WORST * differing.size))
    p_values = [
        (1 + int((parts[:, -count:].sum(axis=1) >= ours[-count:].sum() - ROUNDING).sum()))
        / (1 + DRAWS)
        for count in {worst, differing.size}
    ]
    return min(1.0, len(p_values) * min(p_values))


def hidden_loss(items: int, alpha: float) -> float:
    """The share of a group that may be lost without one loss among so many of its items."""
    return 1.0 - float(alpha ** (1.0 / items))


def _parts(losses: NDArray[np.int64], differing: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the same shape as `losses`."""
    parts: NDArray[np.float64] = np.maximum(0, 2 * losses - differing) ** 2 / differing
    return parts
