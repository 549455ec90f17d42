"""Two calibrated students on the same held-out items, with a known true difference."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate import CANDIDATE, CHAMPION
from pipelines.gate import GateFacts, GatePolicy, Turn, judge
from pipelines.statistics.calibration import calibration_error
from pipelines.statistics.certify import certify_threshold, coverage_gain_p
from pipelines.statistics.intervals import count_pairs, wilson_share
from pipelines.types import Answers, Estimate, Evaluation, HeldOutItem

SHAPE = 0.6  # of the confidences: most of them near 1, as students' are


class Marks(NamedTuple):
    """One student's confidences and whether it was right, item by item."""

    confidences: NDArray[np.float64]
    correct: NDArray[np.bool_]


def held_out_items(count: int, segments: int = 1) -> list[HeldOutItem]:
    return [
        HeldOutItem(
            event_id=f"event-{i}",
            group_id=f"group-{i}",
            text=f"text {i}",
            label="right",
            segment=f"segment-{i % segments}",
        )
        for i in range(count)
    ]


def answers(name: str, marks: Marks) -> Answers:
    return Answers(
        name=name,
        labels=tuple("right" if ok else "wrong" for ok in marks.correct),
        confidences=tuple(float(value) for value in marks.confidences),
    )


def calibrated(
    generator: np.random.Generator, correct: NDArray[np.bool_], agreement: float
) -> Marks:
    """Confidences that are right as often as they say, given who was right."""
    shape = SHAPE * agreement / (1 - agreement)
    sure = generator.beta(shape + 1, SHAPE, correct.size)
    unsure = generator.beta(shape, SHAPE + 1, correct.size)
    return Marks(np.where(correct, sure, unsure), correct)


def champion_marks(generator: np.random.Generator, items: int, agreement: float) -> Marks:
    return calibrated(generator, generator.random(items) < agreement, agreement)


def candidate_marks(
    generator: np.random.Generator,
    champion: Marks,
    *,
    agreement: float,
    discordance: float,
    gain: float,
) -> Marks:
    """A candidate that differs on `discordance` of the items and is better by `gain`."""
    win = (discordance + gain) / 2 / (1 - agreement)
    lose = (discordance - gain) / 2 / agreement
    luck = generator.random(champion.correct.size)
    correct = np.where(champion.correct, luck >= lose, luck < win)
    return calibrated(generator, correct, agreement + gain)


def promoted(
    candidate: Marks,
    champion: Marks,
    policy: GatePolicy,
    facts: GateFacts,
    *,
    turn: Turn,
    seed: int,
    target: float = 0.9,
) -> bool:
    """Whether the gate lets the candidate through.

    The thresholds take most of the time and are read only where the candidate is found not
    worse and yet not better: asked first without them, the gate gives the same answer sooner.
    """
    figures = counts_only(candidate, champion, policy, target=target, seed=seed)
    report = judge(figures, policy, facts, turn=turn)
    if report.verdict != "non_inferior":
        return report.promotable
    figures = with_thresholds(figures, candidate, champion, target=target, seed=seed)
    return judge(figures, policy, facts, turn=turn).promotable


def counts_only(
    candidate: Marks, champion: Marks, policy: GatePolicy, *, target: float, seed: int
) -> Evaluation:
    """What `evaluate` returns, as far as the gate reads it, with no threshold certified."""
    right = _plain(candidate.correct)
    pairs = count_pairs(right, _plain(champion.correct))
    nothing = certify_threshold([], [], target=target)
    unlimited = policy.max_calibration_error >= 1.0
    return Evaluation(
        snapshot="simulated",
        items=pairs.total,
        agreement={CANDIDATE: wilson_share(sum(right), pairs.total, 0.05)},
        difference={},
        slices=(),
        flips=(),
        negative_flip_rate=None,
        calibration_error=Estimate(value=0.0, low=0.0, high=0.0, n=pairs.total)
        if unlimited
        else calibration_error(candidate.confidences.tolist(), right, seed=seed),
        threshold=nothing,
        champion_threshold=nothing,
        pairs={CHAMPION: pairs},
        coverage_gain_p=1.0,
    )


def with_thresholds(
    figures: Evaluation, candidate: Marks, champion: Marks, *, target: float, seed: int
) -> Evaluation:
    ours = (candidate.confidences.tolist(), _plain(candidate.correct))
    theirs = (champion.confidences.tolist(), _plain(champion.correct))
    return dataclasses.replace(
        figures,
        threshold=certify_threshold(*ours, target=target),
        champion_threshold=certify_threshold(*theirs, target=target),
        coverage_gain_p=coverage_gain_p(ours, theirs, target=target, seed=seed),
    )


def _plain(values: NDArray[np.bool_]) -> Sequence[bool]:
    plain: list[bool] = values.tolist()
    return plain
