"""Adding up a batch of events: what is kept of all traffic, chosen or not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bins
from pipelines.types import PromptEvent

TrafficKey = tuple[datetime, str, str, str]  # minute, task, version, segment

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Sums over events of one key; `f` is the predicted agreement.

    Served counts every answer of the student; forced those of them that are not promised: it was
    unsure, and nobody else could be asked. The histogram has what lies beyond the student's reach
    in its lowest bin, where nothing is ever trusted; `far_histogram` what lies far within it.
    """

    events: int
    assessed: int
    served: int
    teacher_served: int
    sum_f: float
    sum_f2: float
    served_sum_f: float
    served_sum_f2: float
    histogram: list[int]
    forced: int = 0
    forced_sum_f: float = 0.0
    novel: int = 0
    far_histogram: list[int] = field(default_factory=lambda: [0] * CONFIDENCE_BINS)


def tally(events: Iterable[tuple[PromptEvent, str]]) -> dict[TrafficKey, Tally]:
    """Sums of (event, segment) pairs per minute, task, version and segment.

    An event that no task claims is counted under the empty task, one without a student's
    answer under the empty version.
    """
    by_key: dict[TrafficKey, list[PromptEvent]] = {}
    minute = end = datetime.max.replace(tzinfo=UTC)
    for event, segment in events:
        if not minute <= event.occurred_at < end:  # neighbours mostly share their minute
            minute = event.occurred_at.replace(second=0, microsecond=0)
            end = minute + MINUTE
        student = event.student
        key = (minute, event.task or "", student.version if student else "", segment)
        by_key.setdefault(key, []).append(event)
    return {key: _sums(events) for key, events in by_key.items()}


def _sums(events: Sequence[PromptEvent]) -> Tally:
    """Of events of one key: a student has answered all of them, or none."""
    said = [(event.student, event.served_by == "student") for event in events if event.student]
    assessed = [student.confidence for student, _ in said]
    served = [student.confidence for student, by_student in said if by_student]
    forced = [student.confidence for student, by_student in said if by_student and student.unsure]
    beyond = np.array([student.reach == "beyond" for student, _ in said], dtype=bool)
    far = np.array([student.reach == "far" for student, _ in said], dtype=bool)
    bins = np.where(beyond, 0, confidence_bins(assessed))
    return Tally(
        events=len(events),
        assessed=len(assessed),
        served=len(served),
        teacher_served=sum(event.served_by == "teacher" for event in events),
        sum_f=sum(assessed),
        sum_f2=sum(f * f for f in assessed),
        served_sum_f=sum(served),
        served_sum_f2=sum(f * f for f in served),
        histogram=np.bincount(bins, minlength=CONFIDENCE_BINS).tolist(),
        forced=len(forced),
        forced_sum_f=sum(forced),
        novel=int(beyond.sum()),
        far_histogram=np.bincount(bins[far], minlength=CONFIDENCE_BINS).tolist(),
    )
