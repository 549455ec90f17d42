"""What is kept of all traffic: sums that say what was promised, forced, far and beyond reach."""

from datetime import timedelta

import pytest
from core_samples import NOON, make_event

from pipelines.reach import Reach
from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bin
from pipelines.tally import Tally, tally
from pipelines.types import PromptEvent, StudentAnswer

VERSION = "support-v1-aaaaaaaa"


def event(
    confidence: float,
    *,
    by: str = "student",
    reach: Reach | None = "near",
    unsure: str = "",
    minutes: int = 0,
) -> PromptEvent:
    answer = StudentAnswer(
        version=VERSION, label="refund", confidence=confidence, reach=reach, unsure=unsure
    )
    return make_event(student=answer, served_by=by, occurred_at=NOON + timedelta(minutes=minutes))


def summed(*events: PromptEvent) -> Tally:
    (found,) = tally((one, "refund") for one in events).values()
    return found


def test_forced_answers_are_among_the_served_and_apart() -> None:
    found = summed(
        event(0.9),
        event(0.4, unsure="below_threshold"),
        event(0.3, unsure="novel", reach="beyond"),
        event(0.2, unsure="below_threshold", by="teacher"),
    )
    assert (found.events, found.served, found.teacher_served, found.forced) == (4, 3, 1, 2)
    assert found.served_sum_f == pytest.approx(1.6)
    assert found.forced_sum_f == pytest.approx(0.7)


def test_what_is_beyond_reach_counts_in_the_lowest_bin_and_nowhere_as_far() -> None:
    found = summed(event(0.99, reach="beyond", unsure="novel"), event(0.99))
    assert found.novel == 1
    assert found.histogram[0] == 1
    assert found.histogram[confidence_bin(0.99)] == 1
    assert sum(found.far_histogram) == 0
    assert found.sum_f == pytest.approx(1.98), "its confidence predicts its agreement all the same"


def test_far_ones_are_counted_by_their_confidence() -> None:
    found = summed(event(0.99, reach="far"), event(0.7, reach="far"), event(0.7), event(0.7))
    far = [0] * CONFIDENCE_BINS
    far[confidence_bin(0.99)] += 1
    far[confidence_bin(0.7)] += 1
    assert found.far_histogram == far
    assert sum(found.histogram) == 4, "far ones are in the histogram of all, too"


def test_a_student_without_prototypes_has_neither_far_nor_novel() -> None:
    found = summed(event(0.9, reach=None), event(0.1, reach=None, unsure="below_threshold"))
    assert (found.novel, sum(found.far_histogram), found.forced) == (0, 0, 1)


def test_without_a_student_there_is_nothing_to_force() -> None:
    found = summed(make_event(served_by="teacher"))
    assert (found.events, found.assessed, found.served, found.forced, found.novel) == (
        1,
        0,
        0,
        0,
        0,
    )


def test_minutes_are_apart() -> None:
    found = tally((one, "refund") for one in (event(0.9), event(0.9, minutes=1), event(0.8)))
    assert sorted(sums.events for sums in found.values()) == [1, 2]
