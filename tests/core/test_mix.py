"""The traffic's mix is held against the evidence's, without a label."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.reach import Reach, Shown, near_of, place, radius_of, within
from pipelines.statistics.certify import certify_threshold
from pipelines.statistics.coverage import CONFIDENCE_BINS, CONFIDENCE_EDGES, confidence_bin
from pipelines.statistics.mix import (
    FEWEST_TRUSTED,
    GRANTED,
    WINDOW,
    many_are_beyond,
    predicted_agreement,
    shown_by,
    threshold_for_mix,
)

LOOSE, STRICT = 0.8, 0.99


def bins(**counts: int) -> list[int]:
    """Events by confidence bin: `loose` of them at `LOOSE`, `strict` at `STRICT`."""
    found = [0] * CONFIDENCE_BINS
    found[confidence_bin(LOOSE)] = counts.get("loose", 0)
    found[confidence_bin(STRICT)] = counts.get("strict", 0)
    return found


def shown(**right: int) -> Shown:
    """100 items near and 100 far at each of the two confidences; all right but where said."""
    return Shown(
        near=tuple(bins(loose=100, strict=100)),
        near_right=tuple(bins(loose=100, strict=100)),
        far=tuple(bins(loose=100, strict=100)),
        far_right=tuple(bins(loose=right.get("far_loose", 96), strict=100)),
    )


def test_the_evidence_is_counted_by_bin_and_place() -> None:
    places: list[Reach | None] = ["near", "far", "far", "beyond", None]
    found = shown_by(
        [LOOSE, LOOSE, STRICT, STRICT, STRICT], places, [True, False, True, True, True]
    )
    assert found.near == tuple(bins(loose=1, strict=1)), "without prototypes all is near"
    assert found.near_right == tuple(bins(loose=1, strict=1))
    assert found.far == tuple(bins(loose=1, strict=1)), "beyond is nowhere"
    assert found.far_right == tuple(bins(strict=1))


def test_the_mix_of_the_evidence_predicts_what_the_evidence_showed() -> None:
    assert predicted_agreement(50, 50, (100, 99, 100, 95)) == pytest.approx(0.97)
    assert predicted_agreement(80, 20, (100, 99, 100, 95)) == pytest.approx(0.982)


def test_far_prompts_beyond_those_of_the_evidence_count_as_wrong() -> None:
    """20 near ones bring 20 far ones and what chance allows; all other far ones are wrong."""
    found = predicted_agreement(20, 80, (100, 100, 100, 100))
    chance = GRANTED * (100 * (1 + 100 / 200) * 0.25) ** 0.5 * 2
    assert found == pytest.approx((20 + 20 + chance) / 100)


def test_of_nothing_nothing_is_predicted_to_agree() -> None:
    assert predicted_agreement(0, 0, (100, 100, 100, 100)) == 0.0


def test_a_threshold_stands_while_the_mix_is_as_the_evidence() -> None:
    live = bins(loose=20, strict=30)
    assert threshold_for_mix(live, live, shown(), LOOSE, 0.97) == LOOSE


def test_fewer_far_prompts_than_the_evidence_had_are_no_reason() -> None:
    live = bins(loose=40, strict=60)
    assert threshold_for_mix(live, bins(), shown(), LOOSE, 0.97) == LOOSE


def test_a_threshold_that_was_certified_just_so_is_not_raised_by_the_same_mix() -> None:
    """The evidence showed 96 % above it, by luck certified at 97: the mix did not change."""
    weak = shown(far_loose=84)
    live = bins(loose=25, strict=25)
    assert threshold_for_mix(live, live, weak, LOOSE, 0.97) == LOOSE


def test_a_surplus_of_far_prompts_raises_it_to_where_there_is_none() -> None:
    near, far = bins(loose=10, strict=20), bins(loose=70, strict=20)
    raised = threshold_for_mix(near, far, shown(), LOOSE, 0.97)
    assert raised is not None
    assert LOOSE < raised <= STRICT
    assert raised == CONFIDENCE_EDGES[confidence_bin(LOOSE) + 1], "the loosest that is stricter"


def test_where_nearly_all_is_far_nothing_is_trusted() -> None:
    near, far = bins(loose=2, strict=2), bins(loose=40, strict=56)
    assert threshold_for_mix(near, far, shown(), LOOSE, 0.97) is None


def test_with_too_little_traffic_it_stands() -> None:
    far = FEWEST_TRUSTED - 1
    assert threshold_for_mix(bins(), bins(strict=far), shown(), LOOSE, 0.97) == LOOSE
    assert threshold_for_mix(bins(), bins(strict=far + 1), shown(), LOOSE, 0.97) is None


def test_traffic_below_the_threshold_says_nothing() -> None:
    unsure = [1_000] + [0] * (CONFIDENCE_BINS - 1)
    assert threshold_for_mix(bins(), unsure, shown(), LOOSE, 0.97) == LOOSE


def test_many_are_beyond_when_chance_explains_it_no_more() -> None:
    assert not many_are_beyond(10, 100, 30, 300), "a tenth of either"
    assert not many_are_beyond(18, 100, 30, 300)
    assert many_are_beyond(40, 100, 30, 300)
    assert not many_are_beyond(0, 100, 30, 300), "fewer are no reason"
    assert not many_are_beyond(0, 0, 30, 300)
    assert not many_are_beyond(5, 100, 0, 0)


def test_a_year_of_looks_finds_many_beyond_for_nothing_at_most_once() -> None:
    """A tenth of the evidence's own prompts lies beyond the radius: RADIUS_SHARE."""
    generator = np.random.default_rng(2)
    evidence, traffic = generator.binomial(300, 0.1, 3_650), generator.binomial(100, 0.1, 3_650)
    alarms = sum(
        many_are_beyond(int(beyond), 100, int(known), 300)
        for beyond, known in zip(traffic, evidence, strict=True)
    )
    assert alarms <= 1


# --- How often it is raised for nothing, and how surely for something ---

Drawn = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def drawn(generator: np.random.Generator, size: int) -> Drawn:
    """(confidence, distance, correct) of a calibrated student that is less sure further out."""
    distances = generator.beta(2.0, 5.0, size)
    scores = 5.0 - 8.0 * (distances - 0.28) + generator.normal(0.0, 1.2, size)
    confidences = 1.0 / (1.0 + np.exp(-scores))
    return confidences, distances, generator.random(size) < confidences


class Student:
    """One that was certified on `items` of the traffic, if it was."""

    def __init__(self, generator: np.random.Generator, items: int, target: float) -> None:
        confidences, far, right = drawn(generator, items)
        distances, correct = far.tolist(), right.tolist()
        self.radius = radius_of(distances, correct)
        trusted = within(confidences.tolist(), distances, self.radius)
        self.threshold = certify_threshold(trusted, correct, target=target).value
        self.near = near_of(trusted, distances, self.threshold)
        self.shown = shown_by(confidences.tolist(), self.places(distances), correct)

    def places(self, distances: Sequence[float]) -> list[Reach | None]:
        return [place(distance, self.near, self.radius) for distance in distances]

    def window(
        self, generator: np.random.Generator, size: int, foreign: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Traffic near and far by confidence bin, with `foreign` prompts that are far and sure."""
        confidences, distances, right = drawn(generator, size - foreign)
        found = shown_by(confidences.tolist(), self.places(distances.tolist()), right.tolist())
        return found.near, (*found.far[:-1], found.far[-1] + foreign)


def raised_share(
    items: int, target: float, *, size: int = WINDOW, foreign: int = 0, looks: int = 2_000
) -> float:
    """Of `looks` at windows that do not overlap, five a student."""
    generator = np.random.default_rng(1)
    raised = done = 0
    while done < looks:
        student = Student(generator, items, target)
        if student.threshold is None:
            continue
        for _ in range(5):
            near, far = student.window(generator, size, foreign)
            found = threshold_for_mix(near, far, student.shown, student.threshold, target)
            raised += found != student.threshold
            done += 1
    return raised / done


@pytest.mark.parametrize("size", [WINDOW, 2_400])  # 40 events a second: a minute is never split
@pytest.mark.parametrize(("items", "target"), [(300, 0.97), (600, 0.97), (120, 0.9), (300, 0.9)])
def test_traffic_as_it_was_seldom_raises_a_threshold(items: int, target: float, size: int) -> None:
    assert raised_share(items, target, size=size) <= 0.01


def test_a_half_of_foreign_prompts_raises_it_at_once_and_a_third_mostly() -> None:
    assert raised_share(300, 0.97, foreign=50, looks=400) >= 0.98
    assert raised_share(300, 0.97, foreign=33, looks=400) >= 0.6
    assert raised_share(300, 0.97, size=2_400, foreign=800, looks=200) >= 0.99
