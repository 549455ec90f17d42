"""Expected calibration error, with bounds that know how much of it is chance."""

import math
from collections.abc import Sequence

import numpy as np

from pipelines.types import Estimate

BINS = 10
DRAWS = 2_000


def calibration_error(
    confidences: Sequence[float],
    correct: Sequence[bool],
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """Expected calibration error over ten equal bins, `alpha` at each end.

    A perfectly calibrated student shows .07 at 77 items and .04 at 300, by chance alone. The
    bounds subtract and add what chance may do: by the triangle inequality the figure differs
    from the truth by at most the weighted absolute noise of the bins, whose 1 - alpha
    quantile is drawn from the binomial distribution. Any unusable confidence: no estimate.
    """
    stated = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if not stated.size or not bool(np.all((stated >= 0.0) & (stated <= 1.0))):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=int(stated.size))
    bins = np.minimum((stated * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    used = counts > 0
    sizes = counts[used]
    hits = np.bincount(bins, weights=right, minlength=BINS)[used]
    promised = np.bincount(bins, weights=stated, minlength=BINS)[used]
    error = float(np.sum(np.abs(hits - promised)) / stated.size)
    # Half a hit and half a miss more: a bin without a miss is not free of noise.
    shares = (hits + 0.5) / (sizes + 1.0)
    drawn = np.random.default_rng(seed).binomial(sizes, shares, size=(DRAWS, sizes.size))
    noise = np.abs(drawn - sizes * shares).sum(axis=1) / stated.size
    chance = float(np.quantile(noise, 1.0 - alpha))
    return Estimate(
        value=error,
        low=max(0.0, error - chance),
        high=min(1.0, error + chance),
        n=int(stated.size),
    )
