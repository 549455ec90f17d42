"""The watched promise: how soon a broken one is noticed, and are live intervals right?"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.referee.figures import Figure, share, tries, waits
from benchmarks.referee.lateness import SERVED, day_budget, first_policy, wishes
from benchmarks.referee.worlds import Student
from pipelines.rates import DAY, Lately, next_policy
from pipelines.statistics.detector import Detector
from pipelines.statistics.estimate import Audit, Kind, TrafficSums, live_agreement_by_kind

TARGET, HEALTHY = 0.97, 0.985
AUDITS_A_DAY = 259  # of answers that the student served, at one event a second
A_YEAR = 365 * AUDITS_A_DAY
DAYS_WELL = 90
DAYS_WATCHED = 400
LOOKS_A_DAY = 12

THRESHOLD = 0.8
AUDIT_RATE = 0.01
LOST = 0.1  # of the labels of served answers
EVENTS = 400_000
LOOKS = 30
WORLDS = {
    "calibrated": Student(agreement=0.93),
    "too sure by 6 points": Student(agreement=0.93, too_sure=0.06),
    "nearly perfect": Student(agreement=0.995),
}
WRONG_WHERE_IT_SERVES = 0.12
ESCALATED_ANSWERED = 130
FEW_SERVED = (1, 2, 3, 5, 10, 20, 40)


def audits_a_day(events_a_day: int) -> int:
    """Of what the student serves, at the rate that the default budget pays for."""
    policy, served = first_policy(), round(SERVED * events_a_day)
    lately = Lately(
        events=events_a_day, window=DAY, answered=events_a_day, served=served, has_champion=True
    )
    for _ in range(2):  # the rate in force decides whether it rises
        policy = next_policy(policy, day_budget(), lately, wishes())
    return round(served * policy.audit_rate)


def days_to_notice(
    drop: float, count: int, seed: int, events_a_day: int | None = None
) -> Iterator[Figure]:
    """A drop after three months in which all was well, with the alarm of an audit-year.

    None: of a task with one event a second.
    """
    audits = AUDITS_A_DAY if events_a_day is None else audits_a_day(events_a_day)
    audits_a_year = 365 * audits

    def one(generator: np.random.Generator) -> float:
        detector = Detector(target=TARGET)
        detector = detector.after_all(generator.random(DAYS_WELL * audits) < HEALTHY)
        if detector.alarmed(audits_a_year):  # a false alarm: the watch begins anew
            detector = Detector(target=TARGET)
        before, step = detector.seen, audits // LOOKS_A_DAY
        while detector.seen - before < DAYS_WATCHED * audits:
            detector = detector.after_all(generator.random(step) < HEALTHY - drop)
            if detector.alarmed(audits_a_year):
                return (detector.seen - before) / audits
        return math.inf

    points = round(100 * drop)
    name = f"days_{points}_point_drop"
    traffic = ""
    if events_a_day is not None:
        name += f"_{events_a_day}_a_day"
        traffic = f" of {events_a_day:,} prompts, {SERVED:.0%} of which the student serves"
    world = (
        f"Agreement falls from {HEALTHY:.1%} to {HEALTHY - drop:.1%} after {DAYS_WELL} days; "
        f"promised are {TARGET:.0%}; {audits} served audits a day{traffic}; an alarm may be false "
        "once a year."
    )
    yield waits(name, list(tries(name, count, (seed, points), one)), world)


def false_alarms_a_year(count: int, seed: int) -> Iterator[Figure]:
    """Half a point above the promise for a year: nothing to be told."""

    def one(generator: np.random.Generator) -> bool:
        agrees = generator.random(A_YEAR) < TARGET + 0.005
        return Detector(target=TARGET).after_all(agrees).alarmed(A_YEAR)

    name = "false_promise_alarms_year"
    world = f"A year at {TARGET + 0.005:.1%} with {TARGET:.0%} promised: any alarm."
    yield share(name, sum(tries(name, count, (seed, 20), one)), count, world)


def served_ever_outside(count: int, seed: int) -> Iterator[Figure]:
    """Live agreement of what the student serves: is the truth ever outside the interval?

    The figure is that of the world where it is outside most often.
    """
    name, found = "served_ever_outside", dict[str, int]()
    for number, (world, student) in enumerate(WORLDS.items()):

        def one(generator: np.random.Generator, student: Student = student) -> bool:
            stream = _Stream(generator, student, EVENTS, lost=LOST)
            ends = np.geomspace(1_000, EVENTS, LOOKS).astype(int)
            return any(stream.served_outside(int(end)) for end in ends)

        found[world] = sum(tries(f"{name}, {world}", count, (seed, 30 + number), one))
    yield share(
        name,
        max(found.values()),
        count,
        f"{LOOKS} looks over about {AUDIT_RATE * EVENTS:,.0f} audits, {LOST:.0%} of the served "
        "ones without a label: the truth outside at any look, in the worst of the worlds.",
        **{f"hits: {world}": hits for world, hits in found.items()},
    )


def served_ever_outside_few_audits(count: int, seed: int) -> Iterator[Figure]:
    """Escalated audits have their labels, served ones hardly; the student errs where it serves."""

    def one(generator: np.random.Generator) -> bool:
        stream = _Stream(generator, Student(agreement=0.93), 60_000, wrong=WRONG_WHERE_IT_SERVES)
        served, escalated = stream.kinds(60_000)
        true = stream.agrees.mean()
        for few in FEW_SERVED:
            whole = live_agreement_by_kind(
                [_first(served, few), _first(escalated, ESCALATED_ANSWERED)]
            ).overall.estimate
            if not whole.low <= true <= whole.high:
                return True
        return False

    name = "served_ever_outside_few_audits"
    world = (
        f"{ESCALATED_ANSWERED} escalated audits are answered and {FEW_SERVED[0]} to "
        f"{FEW_SERVED[-1]} served ones, where alone the student is too sure, by "
        f"{100 * WRONG_WHERE_IT_SERVES:g} points: the truth over all outside at any look."
    )
    yield share(name, sum(tries(name, count, (seed, 40), one)), count, world)


def _first(kind: Kind, count: int) -> Kind:
    return Kind(name=kind.name, sums=kind.sums, audits=kind.audits[:count])


class _Stream:
    """Events of one student in their order, audited at a uniform rate."""

    def __init__(
        self,
        generator: np.random.Generator,
        student: Student,
        events: int,
        *,
        lost: float = 0.0,
        wrong: float = 0.0,
    ) -> None:
        self.predicted = student.confidences(generator, events)
        self.served = self.predicted >= THRESHOLD
        right = student.right_share(self.predicted) - wrong * self.served
        self.agrees = generator.random(events) < right
        self.audited = generator.random(events) < AUDIT_RATE
        self.lost = self.served & (generator.random(events) < lost)

        self._sums = {
            name: (
                own.cumsum(),
                (self.predicted * own).cumsum(),
                np.flatnonzero(own & self.audited),
            )
            for name, own in (("served", self.served), ("escalated", ~self.served))
        }
        self._audits = {name: self._answers(sums[2]) for name, sums in self._sums.items()}

    def kinds(self, end: int) -> list[Kind]:
        """Served and escalated, of the first `end` events."""
        return [
            Kind(
                name=name,
                sums=TrafficSums(
                    events=int(events[end - 1]),
                    predicted=float(predicted[end - 1]),
                ),
                audits=self._audits[name][: int(np.searchsorted(chosen, end))],
            )
            for name, (events, predicted, chosen) in self._sums.items()
        ]

    def served_outside(self, end: int) -> bool:
        served = live_agreement_by_kind(self.kinds(end)).kinds[0]
        true = self.agrees[:end][self.served[:end]].mean()
        return not served.estimate.low <= true <= served.estimate.high

    def _answers(self, chosen: NDArray[np.int64]) -> Sequence[Audit]:
        rows = zip(self.predicted[chosen], self.agrees[chosen], self.lost[chosen], strict=True)
        return [Audit(float(f), None if lost else bool(agrees)) for f, agrees, lost in rows]
