"""Certificates where few prompts are most of the traffic: who keeps the promise on traffic?

The product's own choice of items, weights and thresholds, on prompts whose frequencies follow a
Zipf law and which a student answers always the same. It learned nothing from the frequent ones:
on what it was trained on it is no better than elsewhere, which is the hardest case.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.referee.figures import Figure, share, tries
from benchmarks.referee.lateness import day_budget
from benchmarks.referee.worlds import KINDS, Student
from pipelines.curate import CurationPolicy, LabelledSample, draws_of, held_out_of
from pipelines.evaluate import CONFIDENCE
from pipelines.rates import affordable_rate
from pipelines.sample import HELD_OUT_SHARE_OF_GROUPS
from pipelines.statistics.certify import certify_threshold
from pipelines.statistics.newest import Evidence, Part, certify_newest
from pipelines.traffic import course_of, weighted
from pipelines.types import Example, HeldOutItem, Side, Threshold
from service.sections import DatasetSettings

TARGET = 0.95
PROMPTS = 100_000  # different ones
A_DAY = 10_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DATASET = DatasetSettings()
PURSES = day_budget().purses()
HELD_OUT_RATE = affordable_rate(PURSES["held_out"], HELD_OUT_SHARE_OF_GROUPS * A_DAY, 0.0)
AUDIT_RATE = affordable_rate(PURSES["audit"], A_DAY, 0.0)
LEARNING_RATE = PURSES["learning"] / A_DAY
EXPONENTS, DAYS = (0.8, 1.0), (30, 180)
KINDS_OF_TRAFFIC = ("frequent prompts as the others", "frequent ones easier", "and harder")
FREQUENT = {KINDS_OF_TRAFFIC[1]: (3.0, -0.7), KINDS_OF_TRAFFIC[2]: (-1.5, 0.3)}  # in logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Prompts with their frequencies, their sides, and what one student makes of them."""

    frequency: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    luck: NDArray[np.float64]  # below `right_share` its answer is right
    right_share: NDArray[np.float64]

    @classmethod
    def drawn(
        cls, generator: np.random.Generator, student: Student, exponent: float, kind: str
    ) -> "Traffic":
        """Frequent prompts are easier, and the student knows; or harder, and it does not."""
        rank = np.arange(1, PROMPTS + 1)
        frequency = rank**-exponent / (rank**-exponent).sum()
        slope, level = FREQUENT.get(kind, (0.0, 0.0))
        push = slope * (1.0 - np.log(rank) / np.log(PROMPTS)) + level
        confidence = student.confidences(generator, PROMPTS)
        right_share = student.right_share(confidence)
        if slope > 0:
            confidence = _pushed(confidence, push)
            right_share = student.right_share(confidence)
        elif slope < 0:
            right_share = _pushed(np.clip(right_share, 1e-9, 1 - 1e-9), push)
        return cls(
            frequency=frequency,
            held_out=generator.random(PROMPTS) < HELD_OUT_SHARE_OF_GROUPS,
            confidence=confidence,
            luck=generator.random(PROMPTS),
            right_share=right_share,
        )

    def right(self, fallen: float = 0.0) -> NDArray[np.bool_]:
        """Which prompts it answers rightly after its agreement fell by so much."""
        found: NDArray[np.bool_] = self.luck < self.right_share - fallen
        return found

    def above(self, threshold: float, fallen: float = 0.0) -> tuple[float, float]:
        """True agreement of what lies above, and what share of the traffic that is."""
        served = self.frequency * (self.confidence >= threshold)
        return float(served[self.right(fallen)].sum() / served.sum()), float(served.sum())


def _pushed(share_of_one: NDArray[np.float64], push: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1.0 / (
        1.0 + np.exp(-(np.log(share_of_one / (1.0 - share_of_one)) + push))
    )
    return np.clip(found, 1e-9, 1.0 - 1e-9)


def certificates(
    generator: np.random.Generator, traffic: Traffic, days: int, fall: NDArray[np.float64]
) -> tuple[Threshold, Threshold]:
    """What is certified after so many days: on distinct prompts alone, and as the product does.

    `fall`: by how much agreement had fallen on each of the last `held_out_days`, oldest first.
    """
    samples = _samples(generator, traffic, days, fall)
    policy = CurationPolicy(
        max_per_user=DATASET.max_per_user,
        max_per_group=DATASET.max_per_group,
        held_out_window=DATASET.held_out_window,
        held_out_since=NOW - timedelta(days=DATASET.held_out_days),
    )
    items = held_out_of(samples, policy)
    draws, most = draws_of(samples), DATASET.held_out_window
    by_weight = weighted(draws, items, most)
    distinct = _evidence(traffic, items)
    found = certify_threshold(distinct.confidences, distinct.correct, target=TARGET)
    course = course_of(draws, items, by_weight, most)
    named = {item.event_id: item for item in by_weight}
    promised = certify_newest(
        _evidence(traffic, by_weight),
        _evidence(traffic, [named[event_id] for event_id in course.order]),
        [Part(one.before, _evidence(traffic, one.items), one.since) for one in course.parts],
        target=TARGET,
        confidence_level=CONFIDENCE,
    )
    return found, promised


def _evidence(traffic: Traffic, items: Sequence[HeldOutItem]) -> Evidence:
    return Evidence(
        traffic.confidence[[int(item.group_id) for item in items]].tolist(),
        [item.label == "right" for item in items],
        [item.weight for item in items],
    )


def _samples(
    generator: np.random.Generator, traffic: Traffic, days: int, fall: NDArray[np.float64]
) -> list[LabelledSample]:
    """Labelled samples of the last days, behind one of each of their texts from before or beside.

    Of what no draw chose, and of what is too old to judge, only the texts matter.
    """
    lately = min(days, DATASET.held_out_days)
    rate = np.where(traffic.held_out, HELD_OUT_RATE, AUDIT_RATE)
    drawn = generator.poisson(traffic.frequency * A_DAY * lately * rate)
    elsewhere = (
        traffic.frequency
        * A_DAY
        * ((days - lately) * rate + ~traffic.held_out * days * LEARNING_RATE)
    )
    others = generator.poisson(elsewhere)
    other = (drawn > 0) & (others > 0)
    right = traffic.right()
    # The first of them; those of the held-out side came before the others.
    before = -days * generator.random(PROMPTS) ** (1.0 / np.maximum(others, 1))
    before = np.where(traffic.held_out, np.minimum(before, -lately), before)
    samples = [
        _sample(traffic, int(prompt), float(before[prompt]), bool(right[prompt]), drawn=False)
        for prompt in np.flatnonzero(other)
    ]
    events = np.repeat(np.arange(PROMPTS), drawn)
    at = np.sort(generator.uniform(-lately, 0.0, events.size))
    for prompt, when in zip(generator.permutation(events), at, strict=True):
        fallen = float(fall[int(when) - 1])
        agrees = bool(traffic.luck[prompt] < traffic.right_share[prompt] - fallen)
        samples.append(_sample(traffic, int(prompt), float(when), agrees, drawn=True))
    return sorted(samples, key=lambda sample: sample.occurred_at or NOW)


def _sample(
    traffic: Traffic, prompt: int, day: float, agrees: bool, *, drawn: bool
) -> LabelledSample:
    held_out = bool(traffic.held_out[prompt])
    return LabelledSample(
        Example(
            event_id=f"{prompt} {day:.9f}",
            text=str(prompt),
            label="right" if agrees else "wrong",
            group_id=str(prompt),
            side=Side.HELD_OUT if held_out else Side.TRAINING,
        ),
        "all",
        HELD_OUT_RATE if held_out and drawn else None,
        NOW + timedelta(days=day),
        AUDIT_RATE if drawn and not held_out else None,
    )


def certificates_broken_zipf(count: int, seed: int) -> Iterator[Figure]:
    """Broken on traffic, where no prompt is forgotten; beside it, certified on distinct prompts.

    The figures are those of the traffic where it happens most often.
    """
    name, still = "certificates_broken_zipf", np.zeros(DATASET.held_out_days)
    found = dict[str, NDArray[np.float64]]()
    for number, (exponent, kind, days) in enumerate(product(EXPONENTS, KINDS_OF_TRAFFIC, DAYS)):

        def one(
            generator: np.random.Generator,
            exponent: float = exponent,
            kind: str = kind,
            days: int = days,
        ) -> list[tuple[float, float, float, float]]:
            student = KINDS[int(generator.integers(len(KINDS)))]
            traffic = Traffic.drawn(generator, student, exponent, kind)
            return [kept(traffic, one) for one in certificates(generator, traffic, days, still)]

        world = f"Zipf {exponent:g}, {kind}, {days} days"
        results = list(tries(f"{name}, {world}", count, (seed, 100 + number), one))
        found[world] = np.array(results).sum(axis=0)
    in_words = (
        f"{PROMPTS:,} prompts with frequencies by a Zipf law of {EXPONENTS[0]} or {EXPONENTS[1]}, "
        f"{A_DAY:,} a day for {DAYS[0]} or {DAYS[1]} days, frequent ones as hard as the others, "
        f"easier or harder; {TARGET:.0%} promised at 95 %: true agreement of the traffic above the "
        "certified threshold is lower. Of all tries, in the worst of the worlds"
    )
    for place, suffix, how in (
        (1, "", "as the program certifies: each prompt by its share of the traffic"),
        (0, "_distinct", "each near-duplicate group counted once"),
    ):
        sums = {world: counts[place] for world, counts in found.items()}
        worst = max(sums, key=lambda world: sums[world][0])
        yield share(
            name + suffix,
            int(sums[worst][0]),
            count,
            f"{in_words}; {how}.",
            hits_in_all=float(sum(row[0] for row in sums.values())),
            tries_in_all=float(count * len(sums)),
            issued=float(np.mean([row[1] for row in sums.values()]) / count),
            certified_coverage=float(np.mean([row[2] for row in sums.values()]) / count),
            live_coverage=float(np.mean([row[3] for row in sums.values()]) / count),
            **{f"hits: {world}": float(row[0]) for world, row in sums.items()},
        )


def kept(
    traffic: Traffic, found: Threshold, fallen: float = 0.0
) -> tuple[float, float, float, float]:
    """Broken, issued, certified and live coverage."""
    if found.value is None:
        return 0.0, 0.0, 0.0, 0.0
    true, covered = traffic.above(found.value, fallen)
    return float(true < found.target), 1.0, found.coverage, covered
