"""Live agreement by kind: an audit speaks for its own kind only, however few there are."""

import math
import time
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.statistics.betting import STAKES
from pipelines.statistics.estimate import (
    EVERYTHING,
    Audit,
    Kind,
    TrafficSums,
    live_agreement_by_kind,
)

SHAPE = 0.6
THRESHOLD = 0.8
RATE = 0.01
SERVED, ESCALATED = "served", "escalated"


class World(NamedTuple):
    """A student whose predictions are Beta(a, .6), a from their mean; how often it is right."""

    predicted: float
    too_sure_served: float = 0.0  # points that it is worse than it says, where it serves
    too_sure: float = 0.0  # everywhere


CALIBRATED = World(0.93)
OVERCONFIDENT = World(0.93, too_sure=0.06)
NEARLY_PERFECT = World(0.995)
WRONG_WHERE_IT_SERVES = World(0.93, too_sure_served=0.12)


class Stream(NamedTuple):
    """Events in order: what was predicted, what is true of each, was it served, audited."""

    predicted: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    served: NDArray[np.bool_]
    audited: NDArray[np.bool_]


def stream(generator: np.random.Generator, world: World, events: int) -> Stream:
    shape = SHAPE * world.predicted / (1 - world.predicted)
    predicted = generator.beta(shape, SHAPE, events)
    served = predicted >= THRESHOLD
    right = np.clip(predicted - world.too_sure - world.too_sure_served * served, 0, 1)
    return Stream(
        predicted,
        generator.random(events) < right,
        served,
        generator.random(events) < RATE,
    )


def kinds(found: Stream, end: int, labelled: NDArray[np.bool_] | None = None) -> list[Kind]:
    """The first `end` events, by who answered; `labelled` marks audits whose label came."""
    result = []
    for name, members in ((SERVED, found.served), (ESCALATED, ~found.served)):
        own = np.flatnonzero(members[:end])
        f = found.predicted[own]
        result.append(
            Kind(
                name=name,
                sums=TrafficSums(
                    events=own.size,
                    predicted=float(f.sum()),
                ),
                audits=[
                    Audit(
                        float(found.predicted[i]),
                        bool(found.agrees[i]) if labelled is None or labelled[i] else None,
                    )
                    for i in own[found.audited[own]]
                ],
            )
        )
    return result


@pytest.mark.parametrize("world", [CALIBRATED, OVERCONFIDENT, NEARLY_PERFECT])
def test_every_kind_and_the_whole_are_covered_at_every_look(world: World) -> None:
    generator = np.random.default_rng(1)
    runs, missed = 120, 0
    for _ in range(runs):
        found, wrong = stream(generator, world, 60_000), False
        for end in (500, 2_000, 6_000, 15_000, 30_000, 60_000):
            estimates = live_agreement_by_kind(kinds(found, end))
            agrees, served = found.agrees[:end], found.served[:end]
            members = {SERVED: served, ESCALATED: ~served, EVERYTHING: np.ones(end, dtype=bool)}
            for part in (*estimates.kinds, estimates.overall):
                true = agrees[members[part.name]].mean()
                wrong |= not part.estimate.low <= true <= part.estimate.high
        missed += wrong
    assert missed / runs <= 0.05


def test_the_plain_mean_of_labels_is_biased_and_ours_is_not() -> None:
    """Escalated events have their label at once, and many of the served ones wait."""
    generator = np.random.default_rng(6)
    plain, ours = [], []
    for _ in range(100):
        found = stream(generator, OVERCONFIDENT, 40_000)
        labelled = ~found.served | (generator.random(40_000) < 0.3)
        true = found.agrees.mean()
        plain.append(found.agrees[found.audited & labelled].mean() - true)
        ours.append(
            live_agreement_by_kind(kinds(found, 40_000, labelled)).overall.estimate.value - true
        )
    assert np.mean(plain) < -0.03
    assert abs(np.mean(ours)) < 3 * np.std(ours) / math.sqrt(100)


def test_a_few_served_audits_beside_many_escalated_ones_claim_nothing() -> None:
    """130 escalated answers have come, 1 to 40 served ones; it is wrong only where it serves."""
    generator = np.random.default_rng(2)
    runs, missed = 150, 0
    for _ in range(runs):
        found, wrong = stream(generator, WRONG_WHERE_IT_SERVES, 60_000), False
        first, second = kinds(found, 60_000)
        true = float(found.agrees.mean())
        for served in (1, 2, 3, 5, 10, 20, 40):
            few = Kind(name=SERVED, sums=first.sums, audits=first.audits[:served])
            many = Kind(name=ESCALATED, sums=second.sums, audits=second.audits[:130])
            estimate = live_agreement_by_kind([few, many]).overall.estimate
            wrong |= not estimate.low <= true <= estimate.high
            if served == 1:
                assert estimate.high - estimate.low > 0.5
        missed += wrong
    assert missed / runs <= 0.05


def test_labels_that_are_lost_because_they_are_wrong_lie_between_worst_and_best() -> None:
    generator = np.random.default_rng(3)
    runs, misled, missed = 100, 0, 0
    for _ in range(runs):
        found = stream(generator, OVERCONFIDENT, 100_000)
        lost = generator.random(100_000) < np.where(found.agrees, 0.08, 0.32)
        served = live_agreement_by_kind(kinds(found, 100_000, ~lost)).kinds[0]
        true = found.agrees[found.served].mean()
        misled += not served.estimate.low <= true <= served.estimate.high
        missed += not served.worst <= true <= served.best
        assert served.unanswered == (lost & found.served & found.audited).sum()
        assert served.worst < served.estimate.low
        assert served.best > served.estimate.high
    assert misled / runs > 0.10
    assert missed / runs <= 0.05


def gambled(values: list[float], alpha: float, steps: int = 2_000) -> tuple[float, float]:
    """Plainly: candidate means of values within [-1, 1] against which no gambler gets rich."""
    kept = []
    for candidate in ((2 * index + 1) / steps - 1 for index in range(steps)):
        up, down = [0.0] * len(STAKES), [0.0] * len(STAKES)
        for value in values:
            for k, stake in enumerate(STAKES.tolist()):
                up[k] += math.log1p(stake / (candidate + 1) * (value - candidate))
                down[k] += math.log1p(stake / (1 - candidate) * (candidate - value))
        rich = [sum(map(math.exp, logs)) / len(STAKES) >= 2 / alpha for logs in (up, down)]
        if not any(rich):
            kept.append(candidate)
    return min(kept), max(kept)


def test_it_is_the_mixture_of_plain_bets() -> None:
    found = stream(np.random.default_rng(4), OVERCONFIDENT, 6_000)
    result = live_agreement_by_kind(kinds(found, 6_000), alpha=0.08)
    low, high = 0.0, 0.0
    for part, members in zip(result.kinds, (found.served, ~found.served), strict=True):
        chosen = members & found.audited
        corrections = (found.agrees[chosen] - found.predicted[chosen]).tolist()
        ends = np.array(gambled(corrections, 0.04)) + found.predicted[members].mean()
        assert (part.estimate.low, part.estimate.high) == pytest.approx(
            np.clip(ends, 0, 1), abs=2e-3
        )
        low += part.events / 6_000 * part.estimate.low
        high += part.events / 6_000 * part.estimate.high
    assert (result.overall.estimate.low, result.overall.estimate.high) == pytest.approx((low, high))
    assert result.overall.estimate.n == found.audited.sum()


def test_a_kind_without_a_label_keeps_its_share_unknown() -> None:
    sums = TrafficSums(events=300, predicted=285.0)
    silent = Kind(name="forced", sums=sums, audits=[Audit(0.95, None)] * 3)
    heard = Kind(
        name=SERVED,
        sums=TrafficSums(events=700, predicted=665.0),
        audits=[Audit(0.95, index % 20 > 0) for index in range(400)],
    )
    never = Kind(
        name=ESCALATED,
        sums=TrafficSums(events=0, predicted=0.0),
        audits=[],
    )
    result = live_agreement_by_kind([heard, silent, never])
    assert [part.name for part in result.kinds] == [SERVED, "forced"]
    forced = result.kinds[1]
    assert (forced.estimate.low, forced.estimate.high, forced.estimate.n) == (0.0, 1.0, 0)
    assert (forced.unanswered, math.isnan(forced.estimate.value)) == (3, True)
    whole = result.overall
    assert whole.estimate.high - whole.estimate.low >= 0.3
    assert whole.estimate.value == pytest.approx(0.95)
    assert (whole.events, whole.unanswered, whole.estimate.n) == (1_000, 3, 400)
    alone = live_agreement_by_kind([silent]).overall
    assert math.isnan(alone.estimate.value)
    assert (alone.worst, alone.best) == (0.0, 1.0)


def test_without_an_event_or_a_probability_there_is_no_estimate() -> None:
    sums = TrafficSums(events=10, predicted=9.0)
    with pytest.raises(ValueError, match="no event"):
        live_agreement_by_kind([])
    for predicted in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="not a probability"):
            live_agreement_by_kind([Kind(name="x", sums=sums, audits=[Audit(predicted, True)])])


def test_ten_thousand_audits_take_milliseconds() -> None:
    found = stream(np.random.default_rng(5), CALIBRATED, 1_000_000)
    split = kinds(found, 1_000_000)
    assert 9_000 < sum(len(kind.audits) for kind in split) < 11_000
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        live_agreement_by_kind(split)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1
