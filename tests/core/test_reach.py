"""A student is trusted near what it was trained on, and as far as its evidence went."""

import math

import pytest

from pipelines.reach import FEWEST_RIGHT, RADIUS_SHARE, near_of, place, radius_of, within


def test_the_radius_holds_nine_tenths_of_what_was_answered_rightly() -> None:
    distances = [number / 100 for number in range(101)]
    assert radius_of(distances, [True] * 101) == pytest.approx(RADIUS_SHARE)


def test_what_was_answered_wrongly_does_not_widen_the_radius() -> None:
    right = [number / 100 for number in range(101)]
    wrong = [5.0] * 400
    found = radius_of(right + wrong, [True] * 101 + [False] * 400)
    assert found == radius_of(right, [True] * 101)


def test_too_few_right_answers_leave_nothing_within_reach() -> None:
    few = FEWEST_RIGHT - 1
    assert radius_of([0.1] * FEWEST_RIGHT, [True] * few + [False]) == 0.0
    assert radius_of([0.1] * FEWEST_RIGHT, [True] * FEWEST_RIGHT) == pytest.approx(0.1)
    assert place(0.1, None, 0.0) == "beyond"


def test_a_student_without_distances_has_no_radius_and_keeps_its_confidences() -> None:
    assert radius_of([], []) is None
    assert radius_of([0.1, None], [True, True]) is None
    assert within([0.9, 0.2], [None, None], None) == (0.9, 0.2)
    assert place(None, 0.1, 0.5) is None
    assert place(0.3, 0.1, None) is None


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (0.0, "near"),
        (0.2, "near"),
        (0.2001, "far"),
        (0.5, "far"),
        (0.5001, "beyond"),
        (math.inf, "beyond"),
        (math.nan, "beyond"),
    ],
)
def test_a_prompt_is_near_far_or_beyond(distance: float, expected: str) -> None:
    assert place(distance, 0.2, 0.5) == expected


def test_without_a_nearer_half_all_within_the_radius_is_near() -> None:
    assert place(0.49, None, 0.5) == "near"
    assert place(math.nan, None, 0.5) == "beyond"


def test_what_lies_beyond_is_never_trusted_however_sure_the_student_is() -> None:
    assert within([0.99, 0.99, 0.99, 0.4], [0.5, 0.51, math.nan, 0.1], 0.5) == (0.99, 0, 0, 0.4)


def test_a_confidence_without_its_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        within([0.9, 0.8], [0.1], 0.5)


def test_half_of_what_lies_above_the_threshold_is_near() -> None:
    distances = [0.1, 0.2, 0.3, 9.0, None]
    assert near_of([0.9, 0.9, 0.9, 0.1, 0.9], distances, 0.9) == 0.2
    assert near_of([0.9, 0.9, 0.9, 0.9, 0.9], distances, 0.9) == pytest.approx(0.25)


def test_where_nothing_is_trusted_nothing_is_near() -> None:
    assert near_of([0.9], [0.1], None) is None
    assert near_of([0.5], [0.1], 0.9) is None
    assert near_of([0.9], [], 0.9) is None
