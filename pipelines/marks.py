"""What students said to what they were asked, with the marks of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.reach import radius_of, within
from pipelines.types import Answers, HeldOutItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What its threshold is certified on: confidences, 0 beyond the radius; weights or None."""

    trusted: tuple[float, ...]
    correct: tuple[bool, ...]
    weights: tuple[float, ...] | None


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
) -> Marked:
    if not len(given.labels) == len(given.confidences) == len(asked):
        raise ValueError(
            f"{given.name} gave {len(given.labels)} labels and {len(given.confidences)} "
            f"confidences for {len(asked)} items"
        )
    places = {item.event_id: place for place, item in enumerate(asked)}
    answers, correct = _answers_to(kept, places, given)
    radius = radius_of(answers.distances, correct)
    promised, right = _answers_to(traffic or kept, places, given)
    return Marked(
        answers=answers,
        correct=correct,
        radius=radius,
        promised=Promised(
            trusted=within(promised.confidences, promised.distances, radius),
            correct=right,
            weights=tuple(item.weight for item in traffic) if traffic else None,
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
