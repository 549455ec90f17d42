"""Adding up a batch of events: what is kept of all traffic, chosen or not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bins
from pipelines.types import PromptEvent

TrafficKey = tuple[datetime, str, str, str]  # minute, task, version, segment

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Sums over events of one key; `f` is the predicted agreement."""

    events: int
    assessed: int
    served: int
    teacher_served: int
    sum_f: float
    sum_f2: float
    served_sum_f: float
    served_sum_f2: float
    histogram: list[int]


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
    assessed = [event.student.confidence for event in events if event.student]
    served = [
        event.student.confidence
        for event in events
        if event.student and event.served_by == "student"
    ]
    bins = confidence_bins(assessed)
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
    )
