"""Live agreement is unbiased where a plain mean is not, and may be looked at continuously."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import lambertw

from pipelines.statistics.estimate import (
    DrawnEvent,
    TrafficSums,
    live_agreement,
)
from pipelines.statistics.sequences import (
    lambert_w_minus_1,
    pair_e_value,
)
from pipelines.types import PairCounts

NOTHING = TrafficSums(events=0, predicted=0.0, predicted_squares=0.0)


class Minute(NamedTuple):
    sums: TrafficSums
    drawn: list[DrawnEvent]
    agreement: float  # true, over all its events


def traffic(
    generator: np.random.Generator, minutes: int, events: int, *, answered: float = 1.0
) -> list[Minute]:
    """An overconfident student; events that it is unsure of are drawn far more often."""
    result = []
    for _ in range(minutes):
        stated = generator.beta(8.0, 1.0, events)
        agrees = generator.random(events) < stated - 0.1 * (stated > 0.1)
        rates = 1.0 - (1.0 - 0.02) * (1.0 - np.clip(0.3 * (1.0 - stated), 0.0, 0.5))
        drawn = np.flatnonzero(generator.random(events) < rates)
        result.append(
            Minute(
                TrafficSums(
                    events=events,
                    predicted=float(stated.sum()),
                    predicted_squares=float((stated**2).sum()),
                ),
                [
                    DrawnEvent(
                        predicted=float(stated[i]),
                        probability=float(rates[i]),
                        agrees=bool(agrees[i]) if generator.random() < answered else None,
                    )
                    for i in drawn
                ],
                float(agrees.mean()),
            )
        )
    return result


def test_the_plain_mean_of_labels_is_biased_and_ours_is_not() -> None:
    generator = np.random.default_rng(0)
    plain_errors, our_errors = [], []
    for _ in range(100):
        (minute,) = traffic(generator, 1, 5_000)
        ours = live_agreement(minute.sums, minute.drawn)
        plain = sum(bool(event.agrees) for event in minute.drawn) / len(minute.drawn)
        plain_errors.append(plain - minute.agreement)
        our_errors.append(ours.estimate.value - minute.agreement)
    assert np.mean(plain_errors) < -0.05
    assert abs(float(np.mean(our_errors))) < 3 * float(np.std(our_errors)) / math.sqrt(100)


@pytest.mark.parametrize("trust", [0.0, 1.0])
def test_the_sequence_covers_under_continuous_looking(trust: float) -> None:
    generator = np.random.default_rng(1)
    runs, missed = 150, 0
    for _ in range(runs):
        sums, drawn, agreed = NOTHING, list[DrawnEvent](), 0.0
        wrong = False
        for minute in traffic(generator, 30, 300):
            sums, agreed = sums + minute.sums, agreed + 300 * minute.agreement
            drawn += minute.drawn
            found = live_agreement(sums, drawn, trust=trust, expected_events=9_000).estimate
            wrong |= not found.low <= agreed / sums.events <= found.high
        missed += wrong
    assert missed / runs <= 0.05 + 0.03


def test_the_sequence_covers_a_student_that_is_almost_always_right() -> None:
    generator = np.random.default_rng(2)
    runs, missed = 200, 0
    for _ in range(runs):
        agrees = generator.random(20_000) < 0.96
        drawn = generator.random(20_000) < 0.02
        wrong = False
        for end in range(1_000, 20_001, 1_000):
            sums = TrafficSums(events=end, predicted=0.99 * end, predicted_squares=0.99**2 * end)
            chosen = [
                DrawnEvent(predicted=0.99, probability=0.02, agrees=bool(agrees[i]))
                for i in np.flatnonzero(drawn[:end])
            ]
            found = live_agreement(sums, chosen).estimate
            wrong |= not found.low <= 0.96 <= found.high
        missed += wrong
    assert missed / runs <= 0.05 + 0.03


def test_the_interval_shrinks_as_labels_come() -> None:
    widths = []
    for minutes in (2, 8, 32):
        windows = traffic(np.random.default_rng(3), minutes, 1_000)
        sums = sum((minute.sums for minute in windows), NOTHING)
        found = live_agreement(sums, [e for m in windows for e in m.drawn]).estimate
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] < 0.08


def test_labels_that_never_came_are_counted_and_do_not_bias() -> None:
    generator = np.random.default_rng(4)
    errors = []
    for _ in range(60):
        (minute,) = traffic(generator, 1, 5_000, answered=0.6)
        found = live_agreement(minute.sums, minute.drawn)
        assert found.unanswered == sum(event.agrees is None for event in minute.drawn)
        assert found.estimate.n + found.unanswered == found.drawn == len(minute.drawn)
        errors.append(found.estimate.value - minute.agreement)
    assert abs(float(np.mean(errors))) < 3 * float(np.std(errors)) / math.sqrt(60)


def test_without_labels_nothing_is_known() -> None:
    sums = TrafficSums(events=100, predicted=99.0, predicted_squares=98.0)
    silent = [DrawnEvent(predicted=0.99, probability=0.1, agrees=None)]
    for drawn in ([], silent):
        found = live_agreement(sums, drawn)
        assert (found.estimate.low, found.estimate.high, found.estimate.n) == (0.0, 1.0, 0)
        assert math.isnan(found.estimate.value)
    assert live_agreement(NOTHING, []).estimate.n == 0


def test_a_handful_of_labels_gives_no_interval() -> None:
    sums = TrafficSums(events=100, predicted=99.0, predicted_squares=98.01)
    drawn = [DrawnEvent(predicted=0.99, probability=0.1, agrees=True)] * 10
    found = live_agreement(sums, drawn).estimate
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize(("predicted", "probability"), [(0.5, 0.0), (0.5, 1.2), (math.nan, 0.5)])
def test_impossible_draws_are_refused(predicted: float, probability: float) -> None:
    sums = TrafficSums(events=10, predicted=5.0, predicted_squares=3.0)
    drawn = [DrawnEvent(predicted=predicted, probability=probability, agrees=True)]
    with pytest.raises(ValueError, match="probability"):
        live_agreement(sums, drawn)


def test_lambert_w_agrees_with_scipy() -> None:
    for x in (-0.35, -0.1, -0.0025 / math.e, -1e-8):
        assert lambert_w_minus_1(x) == pytest.approx(float(lambertw(x, -1).real), rel=1e-9)


def test_the_e_value_rarely_gets_large_under_the_null() -> None:
    generator = np.random.default_rng(7)
    runs, crossed = 300, 0
    for _ in range(runs):
        outcomes = generator.choice(3, size=1_000, p=[0.05, 0.05, 0.9])
        steps = np.cumsum(np.eye(3, dtype=int)[outcomes], axis=0)[19::20]
        crossed += any(
            pair_e_value(PairCounts(wins=int(w), losses=int(lost), ties=int(t))) >= 20
            for w, lost, t in steps
        )
    assert crossed / runs <= 0.05 + 0.025


def test_the_e_value_with_a_margin_asks_less() -> None:
    pairs = PairCounts(wins=30, losses=20, ties=350)
    assert pair_e_value(pairs, margin=0.02) > pair_e_value(pairs)
    assert pair_e_value(PairCounts()) == pytest.approx(1.0)
    assert pair_e_value(PairCounts(wins=10_000)) == math.inf
