"""How far a teacher agrees with itself, and what that leaves for any student to reach."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.statistics.intervals import exact_share
from pipelines.types import Estimate

CONFIDENCE = 0.95
FEWEST = 20  # prompts of a segment; smaller ones are looked at together
TOGETHER = "all other segments"


def self_agreement(same: int, asked: int) -> Estimate | None:
    """Share of the questions that the teacher answered the same when it was asked again.

    With Clopper and Pearson's exact interval; None where nothing was asked again.
    """
    return exact_share(same, asked, (1.0 - CONFIDENCE) / 2.0) if asked else None


def reachable(same: Estimate) -> float:
    """The most that any student can agree with such a teacher, over the traffic that was asked.

    A teacher that gives the answers to a prompt with probabilities p_a says the same twice with
    probability sum of p_a^2. The best student always gives the likeliest answer, and agrees with
    probability max p_a, which is at most sqrt(sum of p_a^2); over prompts that bound only gets
    larger by taking the mean inside the root (Jensen). From the interval's upper end.
    """
    return math.sqrt(min(1.0, same.high))


class TeacherError(NamedTuple):
    """What is known of a teacher's errors in one segment.

    `contradicts`: share of the prompts with another answer the second time. At most one of two
    different answers is right, so at least half of it are errors. `corrected`: share of the
    prompts with a person's word where that is another one: people look where they suspect
    something, so it says little about the rest.
    """

    segment: str
    contradicts: Estimate | None
    corrected: Estimate | None


Count = tuple[str, int, int]  # segment, the same, of


def teacher_errors(again: Sequence[Count], people: Sequence[Count]) -> list[TeacherError]:
    """By segment, the most contradictory first; `people` counts where the words were another."""
    asked = {segment: (of - same, of) for segment, same, of in again}
    looked = {segment: (other, of) for segment, other, of in people}
    small = [
        one
        for one in {*asked, *looked}
        if asked.get(one, (0, 0))[1] < FEWEST and looked.get(one, (0, 0))[1] < FEWEST
    ]
    for counts in (asked, looked):
        pooled = [counts.pop(one) for one in small if one in counts]
        if pooled:
            counts[TOGETHER] = (sum(k for k, _ in pooled), sum(n for _, n in pooled))
    found = [
        TeacherError(
            segment,
            self_agreement(*asked.get(segment, (0, 0))),
            self_agreement(*looked.get(segment, (0, 0))),
        )
        for segment in {*asked, *looked}
    ]
    return sorted(
        found, key=lambda one: (-_value(one.contradicts), -_value(one.corrected), one.segment)
    )


def _value(share: Estimate | None) -> float:
    return share.value if share else 0.0
