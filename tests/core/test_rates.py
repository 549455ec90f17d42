"""The draws spend what their own share of the label budget pays for, and no more."""

from dataclasses import replace
from datetime import timedelta
from math import log2

import pytest

from pipelines.rates import DAY, DayBudget, Lately, Wishes, affordable_rate, next_policy, purse_of
from pipelines.sample import SamplingPolicy

DEFAULTS = DayBudget(calls=2_000, tokens=5e6, money=20.0)
POLICY = SamplingPolicy(
    salt=b"salt",
    audit_rate=0.01,
    held_out_rate=0.05,
    given_rate=1.0,
    learning_scale=1.0,
    learning_pi_min=0.02,
    cold_start_rate=1.0,
    cold_start=False,
)
WISHES = Wishes(
    audit_rate=0.01,
    learning_pi_min=0.02,
    held_out_window=3_000,
    held_out_groups=1_000,
    full=False,
    cold_start=False,
    shifted=False,
    held_out_left=400,
    disagreements=0,
    pool_lasts=timedelta(days=14),
    learning_spent=0,
    day_gone=0.5,
)


def lately(events_per_day: float, served: float = 0.6, answered: int = 10_000) -> Lately:
    return Lately(
        events=round(events_per_day),
        window=DAY,
        answered=answered,
        served=round(served * answered),
        has_champion=True,
    )


@pytest.mark.parametrize("events_per_day", [200, 1_000, 10_000, 86_400, 3_456_000])
def test_rates_use_at_least_two_fifths_of_their_purse_and_never_more_than_all(
    events_per_day: int,
) -> None:
    policy = next_policy(POLICY, DEFAULTS, lately(events_per_day), WISHES)
    for rate, events in (
        (policy.audit_rate, 0.6 * events_per_day),
        (policy.held_out_rate, 0.6 * events_per_day / 5),
    ):
        assert log2(rate).is_integer()
        assert rate * events <= 400
        assert rate == 1.0 or rate * events > 0.4 * 400
    assert policy.learning_pi_min * 0.6 * events_per_day <= 1_200


def test_a_rate_does_not_swing_with_traffic_around_a_step() -> None:
    rate, seen = 1.0, set()
    for events in [790, 810] * 20:
        rate = affordable_rate(400, events, rate)
        seen.add(rate)
    assert rate == 0.25
    assert seen == {0.5, 0.25}


def test_after_a_month_of_pass_through_the_first_minute_counts_what_will_be_bought() -> None:
    """The teacher answered all of the last day; the champion is a minute old."""
    fresh = replace(lately(3_456_000), answered=50, served=10)
    policy = next_policy(POLICY, DEFAULTS, fresh, WISHES)
    assert policy.audit_rate * 3_456_000 <= 400
    assert policy.held_out_rate * 3_456_000 / 5 <= 400


def test_what_the_teacher_answers_anyway_is_all_taken_until_the_window_is_full() -> None:
    passing = Lately(events=3_456_000, window=DAY)
    assert next_policy(POLICY, DEFAULTS, passing, WISHES).held_out_free_rate == 1.0
    full = replace(WISHES, held_out_groups=3_000)
    later = next_policy(POLICY, DEFAULTS, passing, full)
    assert later.held_out_free_rate * 3_456_000 / 5 <= 3_000


def test_after_a_shift_the_rest_of_the_purse_is_spent_within_the_hour() -> None:
    calm = next_policy(POLICY, DEFAULTS, lately(86_400), WISHES)
    shifted = next_policy(
        POLICY, DEFAULTS, lately(86_400), replace(WISHES, shifted=True, held_out_left=300)
    )
    assert shifted.held_out_rate > 8 * calm.held_out_rate
    assert shifted.held_out_rate * 0.6 * 86_400 / 24 / 5 <= 300
    spent = replace(WISHES, shifted=True, held_out_left=0)
    assert next_policy(POLICY, DEFAULTS, lately(86_400), spent).held_out_rate < 1e-6


def test_a_first_student_does_not_wait_for_the_rest_of_the_day() -> None:
    """A log that was imported at once is no burst of half a million prompts a day."""
    imported = Lately(events=3_000, window=timedelta(minutes=1))
    policy = next_policy(replace(POLICY, held_out_rate=1.0), DEFAULTS, imported, WISHES)
    assert policy.held_out_rate == 0.5
    steady = Lately(events=432_000, window=DAY)
    assert next_policy(POLICY, DEFAULTS, steady, WISHES).held_out_rate * 86_400 <= 400
    spent = replace(WISHES, held_out_left=0)
    assert next_policy(POLICY, DEFAULTS, imported, spent).held_out_rate < 1e-6


def test_a_young_service_is_not_taken_for_a_quiet_one() -> None:
    young = Lately(events=36_000, window=timedelta(minutes=15))
    assert young.events_per_day == 3_456_000


def test_the_ceiling_that_is_met_first_counts() -> None:
    dear = replace(DEFAULTS, money_of_a_label=0.05, tokens_of_a_label=100)
    assert dear.labels == 400
    found = dear.purses()
    assert found == pytest.approx({"audit": 80, "held_out": 80, "repeat": 20, "learning": 220})


@pytest.mark.parametrize("events_per_day", [1_000, 10_000, 3_456_000])
def test_the_pool_holds_about_a_window_at_most_and_there_is_none_without_a_champion(
    events_per_day: int,
) -> None:
    policy = next_policy(POLICY, DEFAULTS, lately(events_per_day), WISHES)
    assert log2(policy.pool_rate).is_integer()
    kept = policy.pool_rate * events_per_day / 5 * 14
    assert kept <= 3_000
    assert policy.pool_rate == 1.0 or kept > 0.4 * 3_000
    assert next_policy(policy, DEFAULTS, Lately(events=1_000, window=DAY), WISHES).pool_rate == 0.0


def test_labels_where_two_students_differ_come_out_of_the_held_out_purse() -> None:
    calm = next_policy(POLICY, DEFAULTS, lately(86_400), WISHES)
    busy = next_policy(POLICY, DEFAULTS, lately(86_400), replace(WISHES, disagreements=150))
    served = 0.6 * 86_400 / 5
    assert busy.held_out_rate * served + 150 <= 400
    assert busy.audit_rate == calm.audit_rate
    # However many they are, half of the purse is the draw's.
    flood = next_policy(POLICY, DEFAULTS, lately(86_400), replace(WISHES, disagreements=4_000))
    assert flood.held_out_rate * served > 0.4 * 200
    assert purse_of("disagreement") == "held_out"
