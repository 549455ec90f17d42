"""A year's allowance lasts for the year, whoever comes when, and the last is not starved."""

import math
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.statistics.intervals import paired_low, sign_test
from pipelines.statistics.sequences import pair_e_value
from pipelines.statistics.spending import YEAR, Turn, level, shares
from pipelines.types import PairCounts

START = datetime(2026, 1, 1, tzinfo=UTC)
BETTER = 0.6  # the part of a candidate's share that the first look has for "better"


def every(days: float, count: int) -> list[datetime]:
    return [START + number * timedelta(days=days) for number in range(count)]


@given(st.lists(st.integers(0, 400 * 24), min_size=1, max_size=60))
def test_the_shares_of_any_year_sum_to_one_at_most(gaps: list[int]) -> None:
    begun = [START + timedelta(hours=hours) for hours in accumulate(gaps)]
    spent = shares(begun)
    assert all(share > 0 for share in spent)
    for first, moment in enumerate(begun):
        year = [s for at, s in zip(begun, spent, strict=True) if moment <= at <= moment + YEAR]
        assert sum(year) <= 1 + 1e-9, first


def test_a_share_depends_on_no_later_time_and_on_no_clock_that_was_put_back() -> None:
    begun = every(3, 20)
    assert shares(begun)[:7] == shares(begun[:7])
    back = [begun[1], begun[0], begun[1]]
    assert shares(back)[1] < shares(back)[0]
    assert shares([]) == []


def test_after_a_quiet_year_a_candidate_has_what_the_first_one_had() -> None:
    begun = [*every(1, 30), START + timedelta(days=30) + YEAR]
    assert shares(begun)[-1] == pytest.approx(shares(begun)[0])


def shown_better(share: float, items: int, *, years: int = 1_000) -> float:
    """How often a first look shows a candidate 2 points better that differs on 5 % of the items."""
    generator = np.random.default_rng(items)
    drawn = generator.multinomial(items, [0.035, 0.015, 0.95], size=years)
    found, times = np.unique(drawn, axis=0, return_counts=True)
    allowed, shown = 0.05 * BETTER * share, 0
    for (wins, losses, ties), count in zip(found.tolist(), times.tolist(), strict=True):
        pairs = PairCounts(wins=wins, losses=losses, ties=ties)
        if sign_test(pairs) <= allowed and paired_low(pairs, allowed) > 0:
            shown += count
    return shown / years


@pytest.mark.parametrize("days", [1, 7])
def test_the_fiftieth_candidate_of_a_year_is_not_starved(days: float) -> None:
    """By 6 / (pi k)^2, what a k-th candidate could spend before, it was."""
    share = shares(every(days, 52))
    before = {k: 6 / (math.pi * k) ** 2 for k in (1, 4, 13, 52)}
    for items in (900, 2_700):
        now = {k: shown_better(share[k - 1], items) for k in before}
        then = {k: shown_better(before[k], items) for k in before}
        assert now[52] > then[52] + 0.04
        assert now[4] > then[4] - 0.03
        assert now[13] > then[13] - 0.1
        assert now[1] > then[1] - 0.15, "the price: the first one needs a little more"
    assert shown_better(share[51], 2_700) > 0.7


def test_who_trains_every_half_hour_spends_no_more_and_its_last_has_what_the_hundredth_had() -> (
    None
):
    """What it pays with is power: the same year's allowance is shared among 350 times as many."""
    often, weekly = shares(every(1 / 48, 366 * 48)), shares(every(7, 52))
    assert sum(often) <= 1
    assert often[-1] == pytest.approx(often[99], rel=0.01)
    assert often[99] == pytest.approx((1 / 2) / (366 * 48), rel=0.01), "all that comes back is used"
    needed = {share: wins_without_a_loss(share) for share in (often[-1], weekly[-1])}
    assert needed == {often[-1]: 21, weekly[-1]: 12}
    assert shown_better(often[-1], 2_700) > 0.35


def wins_without_a_loss(share: float) -> int:
    return math.ceil(-math.log2(0.05 * BETTER * share))


def turn(**about: float) -> Turn:
    return Turn(**{"attempt": 1, "look": 1, "share": 0.1, "promotions": 0, **about})  # type: ignore[arg-type]


def test_only_later_looks_gain_by_promotions_and_no_look_has_more_than_alpha() -> None:
    assert level(0.05, turn()) == pytest.approx(0.005)
    assert level(0.05, turn(promotions=3)) == pytest.approx(0.005)
    assert level(0.05, turn(look=2)) == pytest.approx(0.005)
    assert level(0.05, turn(look=2, promotions=3)) == pytest.approx(0.02)
    assert level(0.05, turn(look=2, promotions=30)) == 0.05


@pytest.mark.parametrize(
    "broken",
    [{"attempt": 0}, {"look": 0}, {"share": 0.0}, {"share": math.nan}, {"promotions": -1}],
)
def test_an_impossible_turn_has_no_level(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"count from 1|no turn"):
        level(0.05, turn(**broken))


def test_few_promotions_are_false_and_more_are_made_for_those_before() -> None:
    """Weekly candidates, half of them no better, judged on the same growing 3,000 items."""
    generator = np.random.default_rng(4)
    share = shares(every(7, 52))
    false_shares, made = [], {True: 0, False: 0}
    for _ in range(40):
        promoted, false, without = 0, 0, 0
        for week in range(52):
            gain = 0.02 * (week % 2)
            chances = [(0.05 + gain) / 2, (0.05 - gain) / 2, 0.95]
            wins, losses, ties = generator.multinomial(3_000, chances).tolist()
            evidence = pair_e_value(PairCounts(wins=wins, losses=losses, ties=ties))
            now = turn(attempt=week + 1, look=2, share=share[week], promotions=promoted)
            without += evidence >= 1 / level(0.05, turn(look=2, share=share[week]))
            if evidence >= 1 / level(0.05, now):
                promoted += 1
                false += not gain
        false_shares.append(false / max(promoted, 1))
        made[True] += promoted
        made[False] += without
    assert sum(false_shares) / len(false_shares) <= 0.05
    assert made[True] > 1.1 * made[False]
