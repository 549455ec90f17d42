"""The intervals agree with independent implementations and cover what they promise."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from pipelines.statistics.intervals import (
    binomial_at_least,
    binomial_at_most,
    count_pairs,
    exact_high,
    exact_low,
    holm,
    paired_difference,
    paired_high,
    paired_low,
    sign_test,
    weighted_difference,
    wilson_share,
)
from pipelines.types import PairCounts


@pytest.mark.parametrize("n", [1, 7, 99, 1_000, 20_000])
@pytest.mark.parametrize("p", [0.001, 0.03, 0.5, 0.9, 0.999])
def test_binomial_tails_agree_with_scipy(n: int, p: float) -> None:
    for k in {0, 1, n // 3, int(n * p), int(n * p) + 1, n - 1, n}:
        assert binomial_at_most(k, n, p) == pytest.approx(
            stats.binom.cdf(k, n, p), rel=1e-6, abs=1e-11
        )
        assert binomial_at_least(k, n, p) == pytest.approx(
            stats.binom.sf(k - 1, n, p), rel=1e-6, abs=1e-11
        )


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (97, 100), (300, 310), (50, 50)])
def test_exact_bounds_agree_with_scipy(k: int, n: int) -> None:
    exact = stats.binomtest(k, n).proportion_ci(confidence_level=0.9, method="exact")
    assert exact_low(k, n, 0.05) == pytest.approx(exact.low, abs=1e-9)
    assert exact_high(k, n, 0.05) == pytest.approx(exact.high, abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (97, 100), (50, 50)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    score = stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    share = wilson_share(k, n, 0.05)
    assert (share.low, share.high) == pytest.approx((score.low, score.high), abs=1e-9)


def score_by_search(pairs: PairCounts, difference: float) -> float:
    """The score statistic with the restricted maximum likelihood found by brute search."""

    def minus_log_likelihood(losing: float) -> float:
        winning, tied = losing + difference, 1 - 2 * losing - difference
        if min(losing, winning, tied) <= 0:
            return math.inf
        return -(
            pairs.wins * math.log(winning)
            + pairs.losses * math.log(losing)
            + pairs.ties * math.log(tied)
        )

    low, high = max(0.0, -difference), (1 - difference) / 2
    losing = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = (2 * losing + difference - difference**2) / pairs.total
    return float(((pairs.wins - pairs.losses) / pairs.total - difference) / math.sqrt(variance))


@pytest.mark.parametrize(
    "pairs",
    [
        PairCounts(wins=24, losses=9, ties=275),
        PairCounts(wins=3, losses=5, ties=140),
        PairCounts(wins=60, losses=20, ties=20),
    ],
)
def test_paired_bounds_solve_the_score_equation(pairs: PairCounts) -> None:
    z = stats.norm.ppf(0.95)
    assert score_by_search(pairs, paired_low(pairs, 0.05)) == pytest.approx(z, abs=1e-3)
    assert score_by_search(pairs, paired_high(pairs, 0.05)) == pytest.approx(-z, abs=1e-3)


def test_identical_students_are_not_proven_equal_by_few_items() -> None:
    assert paired_low(PairCounts(ties=150), 0.05) < -0.015
    assert paired_low(PairCounts(ties=300), 0.05) > -0.01


def test_the_paired_interval_covers() -> None:
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(1_000):
        won, lost, tied = generator.multinomial(300, [0.08, 0.03, 0.89])
        found = paired_difference(PairCounts(wins=int(won), losses=int(lost), ties=int(tied)), 0.05)
        missed += not found.low <= 0.05 <= found.high
    assert missed / 1_000 <= 0.05 + 0.02


def test_the_weighted_difference_covers_where_the_plain_one_is_biased() -> None:
    generator = np.random.default_rng(1)
    missed, plain = 0, []
    for _ in range(400):
        hard = generator.random(4_000) < 0.3
        gains = np.where(hard, 0.10, 0.0)  # the candidate is better on the hard items only
        drawn = generator.random(4_000) < np.where(hard, 0.4, 0.08)
        luck = generator.random(4_000)
        candidate, champion = luck < 0.5 + gains, luck < 0.5
        chosen = np.flatnonzero(drawn)
        found = weighted_difference(
            candidate[chosen].tolist(),
            champion[chosen].tolist(),
            np.where(hard, 0.4, 0.08)[chosen].tolist(),
            0.05,
        )
        missed += not found.low <= 0.03 <= found.high
        plain.append(float(np.mean(candidate[chosen]) - np.mean(champion[chosen])))
    assert missed / 400 <= 0.05 + 0.03
    assert np.mean(plain) > 0.05


def test_the_sign_test_agrees_with_scipy() -> None:
    expected = stats.binomtest(24, 33, alternative="greater").pvalue
    assert sign_test(PairCounts(wins=24, losses=9, ties=275)) == pytest.approx(expected)
    assert sign_test(PairCounts(ties=10)) == 1.0


def test_count_pairs_counts_who_was_right() -> None:
    assert count_pairs([True, True, False, False], [True, False, True, False]) == PairCounts(
        wins=1, losses=1, ties=2
    )


def test_holm_rejects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == (True, False, False, True)
    assert holm([0.02], 0.05) == (True,)
    assert holm([math.nan, 0.001], 0.05)[0] is False
    assert holm([], 0.05) == ()
