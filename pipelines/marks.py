"""What students said to what they were asked, with the marks of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from pipelines.reach import radius_of, within
from pipelines.statistics.newest import Evidence, Part
from pipelines.types import Answers, HeldOutItem


class CoursePart(NamedTuple):
    """What a threshold is certified on from one moment on; so many draws came before it."""

    before: int
    since: datetime
    items: tuple[HeldOutItem, ...]
    weighted: bool


class Course(NamedTuple):
    """Evidence in the order in which it came: an item a draw, by its event."""

    order: tuple[str, ...] = ()
    parts: tuple[CoursePart, ...] = ()


NO_COURSE = Course()


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What its threshold is certified on. Confidences are 0 beyond the radius."""

    whole: Evidence
    draws: Evidence  # of the course, oldest first
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """One student's answers with their marks."""

    answers: Answers
    correct: tuple[bool, ...]
    radius: float | None
    promised: Promised

    @property
    def trusted(self) -> tuple[float, ...]:
        """The confidences, and 0 beyond the radius."""
        return within(self.answers.confidences, self.answers.distances, self.radius)


def asked_of(
    items: Sequence[HeldOutItem], traffic: Sequence[HeldOutItem]
) -> tuple[HeldOutItem, ...]:
    """All that each student has to answer: what compares them, then the others, each once."""
    there = {item.event_id for item in items}
    return (*items, *(item for item in traffic if item.event_id not in there))


def mark(
    asked: Sequence[HeldOutItem],
    kept: Sequence[HeldOutItem],
    traffic: Sequence[HeldOutItem],
    given: Answers,
    course: Course = NO_COURSE,
) -> Marked:
    if not len(given.labels) == len(given.confidences) == len(asked):
        raise ValueError(
            f"{given.name} gave {len(given.labels)} labels and {len(given.confidences)} "
            f"confidences for {len(asked)} items"
        )
    places = {item.event_id: place for place, item in enumerate(asked)}
    answers, correct = _answers_to(kept, places, given)
    radius = radius_of(answers.distances, correct)

    def evidence(items: Sequence[HeldOutItem], *, weighted: bool) -> Evidence:
        said, right = _answers_to(items, places, given)
        weights = tuple(item.weight for item in items) if weighted else None
        return Evidence(within(said.confidences, said.distances, radius), right, weights)

    named = {item.event_id: item for item in asked}
    return Marked(
        answers=answers,
        correct=correct,
        radius=radius,
        promised=Promised(
            whole=evidence(traffic or kept, weighted=bool(traffic)),
            draws=evidence([named[event_id] for event_id in course.order], weighted=False),
            parts=tuple(
                Part(one.before, evidence(one.items, weighted=one.weighted), one.since)
                for one in course.parts
            ),
        ),
    )


def _answers_to(
    items: Sequence[HeldOutItem], places: Mapping[str, int], given: Answers
) -> tuple[Answers, tuple[bool, ...]]:
    """What was said to these of all that were asked, and where it was the teacher's label."""
    at = [places[item.event_id] for item in items]
    answers = Answers(
        name=given.name,
        labels=tuple(given.labels[index] for index in at),
        confidences=tuple(given.confidences[index] for index in at),
        distances=tuple(given.distances[index] for index in at) if given.distances else (),
    )
    right = (label == item.label for label, item in zip(answers.labels, items, strict=True))
    return answers, tuple(right)
