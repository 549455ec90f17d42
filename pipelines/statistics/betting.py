"""What a gambler's wealth says about the mean of bounded values, however often one looks."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Estimate

# The shares of wealth that are staked, mixed evenly. Most are small: for many values. The large
# ones are for the first hundred.
STAKES = np.array([((i + 0.5) / 10) ** 2 for i in range(10)])
HALVINGS = 22  # of the interval in which an end is searched
# Factors are multiplied in chunks, because that is quicker than to add their logarithms. A chunk
# of the largest and smallest possible factors is still a number.
CHUNK = 32
SMALLEST_MEAN = 1e-6


def betting_interval(
    values: Sequence[float] | NDArray[np.float64],
    *,
    smallest: float = 0.0,
    largest: float = 1.0,
    alpha: float = 0.05,
) -> Estimate:
    """The mean of values within [smallest, largest], with a confidence sequence.

    With probability 1 - alpha it holds the mean at every look at once, if each value has that
    mean given those before it: no normal approximation, no number of values that is needed
    first. Against each candidate mean m a gambler stakes shares g of his wealth on values above
    it, 1 - g + g x / m a value, and another one on values below; a candidate is out when either
    has made 2 / alpha of 1 (Waudby-Smith and Ramdas, Estimating means of bounded random
    variables by betting, JRSS B 2024: hedged capital, with a fixed mixture of stakes).

    The stakes stay the same from the first value to the last, so that the order is of no
    account and no period weighs more than another: when the mean drifts, at each single look
    the interval is still one of the average mean up to there. (Bets that shrink as values come
    give an interval of mostly the first values then.)

    Raises ValueError where a value is outside the limits or not a number.
    """
    found = np.asarray(values, dtype=np.float64)
    if not bool(np.all((found >= smallest) & (found <= largest))):
        raise ValueError(f"a value is not within [{smallest:g}, {largest:g}]")
    if not found.size:
        return Estimate(value=math.nan, low=smallest, high=largest, n=0)
    width = largest - smallest
    scaled = (found - smallest) / width
    return Estimate(
        value=float(found.mean()),
        low=smallest + width * _low(scaled, alpha / 2.0),
        high=largest - width * _low(1.0 - scaled, alpha / 2.0),
        n=int(found.size),
    )


def _low(values: NDArray[np.float64], alpha: float) -> float:
    """The largest mean that is out, from below; wealth falls with the mean that is bet against."""
    out, kept = 0.0, float(values.mean())  # against the average itself nothing is ever won
    if kept <= SMALLEST_MEAN:
        return out
    chunks = np.full((-(-values.size // CHUNK), CHUNK), np.nan)
    chunks.flat[: values.size] = values
    for _ in range(HALVINGS):
        middle = (out + kept) / 2.0
        if middle > SMALLEST_MEAN and _log_wealth(chunks, middle) >= -math.log(alpha):
            out = middle
        else:
            kept = middle
    return out


def _log_wealth(chunks: NDArray[np.float64], mean: float) -> float:
    """Of the mixture. Values that are not a number fill the last chunk and win nothing."""
    wins = np.nan_to_num(chunks / mean - 1.0)
    logs = np.log(np.prod(1.0 + STAKES[:, None, None] * wins, axis=2)).sum(axis=1)
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).mean()))
