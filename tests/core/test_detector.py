"""The detector of a broken promise: seldom wrong, quick when right, and it knows since when."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.statistics.detector import ERROR_RATIOS, Detector

TARGET = 0.97
A_DAY = 259  # served audits at one event a second and the default rate
A_YEAR = 365 * A_DAY


def audits(seed: int, *stretches: tuple[int, float]) -> list[bool]:
    """So many audits that agree with such a probability, one stretch after the other."""
    generator = np.random.default_rng(seed)
    parts = [generator.random(count) < share for count, share in stretches]
    return [bool(agrees) for agrees in np.concatenate(parts)]


def slowly(agrees: Sequence[bool], target: float) -> tuple[float, float, int]:
    """By definition: evidence, the highest it was, and the likeliest beginning of a break then."""
    evidence, highest, since = 0.0, 0.0, 0
    for end in range(1, len(agrees) + 1):
        sums, best = [], (0.0, 0)
        for ratio in ERROR_RATIOS:
            stake = (min(ratio * (1 - target), 1 - target / 2) / (1 - target) - 1) / target
            factors = [1 + stake * (target - agree) for agree in agrees[:end]]
            products = [math.prod(factors[start:]) for start in range(end)]
            sums.append(sum(products))
            best = max(best, *((product, start) for start, product in enumerate(products)))
        evidence = sum(sums) / len(sums)
        if evidence > highest:
            highest, since = evidence, best[1]
    return evidence, highest, since


@pytest.mark.parametrize(("target", "share"), [(0.97, 0.7), (0.9, 0.9), (0.4, 0.3), (0.999, 0.98)])
def test_it_is_the_sum_over_all_beginnings(target: float, share: float) -> None:
    for seed in range(5):
        agrees = audits(seed, (40, 1.0), (40, share))
        found = Detector(target=target).after_all(agrees)
        evidence, highest, since = slowly(agrees, target)
        assert found.evidence == pytest.approx(evidence)
        assert found.highest == pytest.approx(highest)
        assert (found.seen, found.since) == (80, since)


def test_audits_may_come_one_by_one_or_in_batches() -> None:
    agrees = audits(1, (300, 0.985), (200, 0.9))
    single = batched = Detector(target=TARGET)
    for agree in agrees:
        single = single.after(agree)
    for start in range(0, 500, 37):
        batched = batched.after_all(agrees[start : start + 37])
    at_once = Detector(target=TARGET).after_all(agrees)
    for one in (single, batched):
        assert one.highest == pytest.approx(at_once.highest)
        assert one.evidence == pytest.approx(at_once.evidence)
        assert (one.since, one.seen) == (at_once.since, at_once.seen)
    assert at_once.after_all([]) is at_once


def first_alarm(detector: Detector, agrees: Sequence[bool], limit: float, step: int) -> int | None:
    """Audits until the alarm, looking every `step`."""
    for start in range(0, len(agrees), step):
        detector = detector.after_all(agrees[start : start + step])
        if detector.alarmed(limit):
            return detector.seen
    return None


@pytest.mark.parametrize(("drop", "days"), [(0.05, 2), (0.02, 35)])
def test_a_drop_is_noticed_within_days_however_long_all_was_well(drop: float, days: int) -> None:
    delays = []
    for seed in range(25):
        well = Detector(target=TARGET).after_all(audits(seed, (90 * A_DAY, 0.985)))
        assert not well.alarmed(A_YEAR)
        after = audits(1_000 + seed, (150 * A_DAY, 0.985 - drop))
        alarm = first_alarm(well, after, A_YEAR, A_DAY // 12)
        delays.append(math.inf if alarm is None else (alarm - well.seen) / A_DAY)
    assert np.median(delays) <= days


def test_the_mean_time_to_a_false_alarm_is_what_was_asked_for() -> None:
    """At exactly the target, the hardest case in which the promise is kept."""
    limit, runs = 2_000, 150
    lengths = [
        first_alarm(Detector(target=TARGET), audits(seed, (60_000, TARGET)), limit, 1_000) or 60_000
        for seed in range(runs)
    ]
    error = np.std(lengths) / math.sqrt(runs)
    assert np.mean(lengths) - 2 * error >= limit


def test_healthy_years_pass_in_silence() -> None:
    alarms = sum(
        Detector(target=TARGET).after_all(audits(seed, (A_YEAR, 0.975))).alarmed(A_YEAR)
        for seed in range(40)
    )
    assert alarms <= 2


def test_it_says_since_when() -> None:
    misses = []
    for seed in range(30):
        agrees = audits(seed, (5_000, 0.985), (400, 0.90))
        found = Detector(target=TARGET).after_all(agrees)
        assert found.alarmed(10_000)
        misses.append(abs(found.since - 5_000))
    assert np.median(misses) <= 30


def test_evidence_stays_a_number_however_bad_it_gets() -> None:
    found = Detector(target=TARGET).after_all([False] * 20_000)
    assert math.isfinite(found.highest)
    assert found.alarmed(A_YEAR)
    assert found.since == 0


@pytest.mark.parametrize("target", [0.0, 1.0, math.nan])
def test_an_impossible_promise_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="promised agreement"):
        Detector(target=target).after(True)
