"""Adding up a batch of events: what is kept of all traffic, chosen or not."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from pipelines.coverage import CONFIDENCE_BINS, confidence_bin
from pipelines.types import PromptEvent

TrafficKey = tuple[datetime, str, str, str]  # minute, task, version, segment


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over events of one key; `f` is the predicted agreement. Mutable: it is added up."""

    events: int = 0
    assessed: int = 0
    served: int = 0
    teacher_served: int = 0
    sum_f: float = 0.0
    sum_f2: float = 0.0
    served_sum_f: float = 0.0
    served_sum_f2: float = 0.0
    histogram: list[int] = field(default_factory=lambda: [0] * CONFIDENCE_BINS)


def tally(events: Iterable[tuple[PromptEvent, str]]) -> dict[TrafficKey, Tally]:
    """Sums of (event, segment) pairs per minute, task, version and segment.

    An event that no task claims is counted under the empty task, one without a student's
    answer under the empty version.
    """
    tallies: dict[TrafficKey, Tally] = {}
    for event, segment in events:
        student = event.student
        minute = event.occurred_at.replace(second=0, microsecond=0)
        key = (minute, event.task or "", student.version if student else "", segment)
        sums = tallies.get(key)
        if sums is None:
            sums = tallies[key] = Tally()
        sums.events += 1
        if event.served_by == "teacher":
            sums.teacher_served += 1
        if student is not None:
            confidence = student.confidence
            sums.assessed += 1
            sums.sum_f += confidence
            sums.sum_f2 += confidence * confidence
            sums.histogram[confidence_bin(confidence)] += 1
            if event.served_by == "student":
                sums.served += 1
                sums.served_sum_f += confidence
                sums.served_sum_f2 += confidence * confidence
    return tallies
