"""Betting intervals: what they promise at every look, and that they are what they say."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.statistics.betting import STAKES, betting_interval


def slowly(values: list[float], alpha: float, steps: int = 400) -> tuple[float, float]:
    """The candidate means on a grid against which neither gambler gets rich."""
    kept = []
    for candidate in ((index + 0.5) / steps for index in range(steps)):
        above, below = 0.0, 0.0
        for stake in STAKES.tolist():
            up, down = 1.0, 1.0
            for value in values:
                up *= 1 + stake / candidate * (value - candidate)
                down *= 1 + stake / (1 - candidate) * (candidate - value)
            above, below = above + up / len(STAKES), below + down / len(STAKES)
        if max(above / 2, below / 2) < 1 / alpha:  # hedged capital: half a bet on either side
            kept.append(candidate)
    return min(kept), max(kept)


@pytest.mark.parametrize("agreement", [0.2, 0.5, 0.97])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 150])
def test_the_interval_is_that_of_a_gambler_on_every_candidate(agreement: float, count: int) -> None:
    generator = np.random.default_rng(count)
    values = generator.beta(8, 8 * (1 - agreement) / agreement, count)
    found = betting_interval(values, alpha=0.05)
    low, high = slowly(values.tolist(), 0.05)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1 / 400)
    assert found.value == pytest.approx(values.mean())
    assert found.n == count


@pytest.mark.parametrize("agreement", [0.97, 0.995, 0.6])
def test_it_holds_the_mean_at_every_look(agreement: float) -> None:
    """Nearly perfect is the hard case: no error for a long time, and no normal approximation."""
    generator = np.random.default_rng(1)
    looks = [1, 3, 10, 30, 60, 120, 250, 500]
    runs, missed = 300, 0
    for _ in range(runs):
        values = (generator.random(looks[-1]) < agreement).astype(float)
        found = [betting_interval(values[:end]) for end in looks]
        missed += not all(one.low <= agreement <= one.high for one in found)
    assert missed / runs <= 0.05


def test_it_holds_the_average_where_the_mean_drifts() -> None:
    generator = np.random.default_rng(2)
    runs, missed = 300, 0
    for _ in range(runs):
        true = np.repeat([0.99, 0.80], 1_000)
        found = betting_interval((generator.random(2_000) < true).astype(float))
        missed += not found.low <= true.mean() <= found.high
    assert missed / runs <= 0.05


def test_order_is_of_no_account() -> None:
    values = np.random.default_rng(3).random(500)
    backwards = betting_interval(values[::-1])
    assert betting_interval(values).low == pytest.approx(backwards.low)
    assert betting_interval(values).high == pytest.approx(backwards.high)


def test_limits_are_a_matter_of_scale() -> None:
    values = np.random.default_rng(4).random(300)
    narrow, wide = betting_interval(values), betting_interval(2 * values - 1, smallest=-1)
    assert wide.low == pytest.approx(2 * narrow.low - 1)
    assert wide.high == pytest.approx(2 * narrow.high - 1)


def width(values: NDArray[np.float64]) -> float:
    found = betting_interval(values)
    return found.high - found.low


def test_it_is_about_as_narrow_as_one_that_may_be_looked_at_once() -> None:
    generator = np.random.default_rng(5)
    for count, times in ((200, 2.1), (1_000, 2.1), (10_000, 2.3)):
        values = (generator.random(count) < 0.95).astype(float)
        once = 2 * 1.96 * math.sqrt(0.95 * 0.05 / count)
        assert width(values) <= times * once


def test_what_is_always_the_same_leaves_the_other_side_open() -> None:
    sure = betting_interval([1.0] * 100)
    assert sure.high == 1.0
    assert 0.90 < sure.low < 0.97
    assert betting_interval([0.0] * 100).low == 0.0
    nothing = betting_interval([])
    assert (nothing.low, nothing.high, nothing.n) == (0.0, 1.0, 0)
    assert math.isnan(nothing.value)


@pytest.mark.parametrize("value", [1.5, -0.5, math.nan])
def test_what_is_outside_the_limits_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not within"):
        betting_interval([0.5, value])
