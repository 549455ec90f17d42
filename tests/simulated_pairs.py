"""Two calibrated students on the same held-out items, with a known true difference."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import calibration_error
from pipelines.certify import certify_threshold, coverage_gain_p
from pipelines.evaluate import CANDIDATE, CHAMPION
from pipelines.gate import GatePolicy
from pipelines.intervals import count_pairs, paired_low, wilson_share
from pipelines.types import Answers, Evaluation, HeldOutItem

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


def within_reach(candidate: Marks, champion: Marks, policy: GatePolicy) -> bool:
    """Whether the gate could find this candidate not worse, at any attempt."""
    pairs = count_pairs(_plain(candidate.correct), _plain(champion.correct))
    return paired_low(pairs, policy.alpha) > -policy.delta


def quick_evaluation(
    candidate: Marks, champion: Marks, *, target: float, policy: GatePolicy, seed: int
) -> Evaluation:
    """What `evaluate` returns, as far as the gate reads it, without what it would not read.

    The threshold and the chance of its gain take most of the time and matter only within reach.
    """
    pairs = count_pairs(_plain(candidate.correct), _plain(champion.correct))
    items = pairs.total
    ours = (candidate.confidences.tolist(), _plain(candidate.correct))
    theirs = (champion.confidences.tolist(), _plain(champion.correct))
    reach = within_reach(candidate, champion, policy)
    nothing = certify_threshold([], [], target=target)
    return Evaluation(
        snapshot="simulated",
        items=items,
        agreement={CANDIDATE: wilson_share(sum(ours[1]), items, 0.05)},
        difference={},
        slices=(),
        flips=(),
        negative_flip_rate=None,
        calibration_error=calibration_error(*ours, seed=seed),
        threshold=certify_threshold(*ours, target=target) if reach else nothing,
        champion_threshold=certify_threshold(*theirs, target=target) if reach else nothing,
        pairs={CHAMPION: pairs},
        coverage_gain_p=coverage_gain_p(ours, theirs, target=target, seed=seed) if reach else 1.0,
    )


def _plain(values: NDArray[np.bool_]) -> Sequence[bool]:
    plain: list[bool] = values.tolist()
    return plain
