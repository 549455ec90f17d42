"""Is a retrain due, and why not when it is not. Every answer is one sentence with numbers."""

from dataclasses import dataclass
from datetime import timedelta

# A champion that may answer nothing is worth another try with so many times the labels.
SERVES_NOTHING_GROWTH = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerPolicy:
    """When a retrain starts without waiting for its schedule."""

    min_labels: int = 200  # for a first student
    min_groups: int = 150  # held-out groups for a first student: `pipelines.checks.groups_needed`
    growth: float = 2.0  # labels now / labels at the last training
    min_new_labels: int = 50  # whatever the growth, and for a drop or an alarm to count
    coverage_drop: float = 0.05  # trusted coverage below the certified one by this much
    min_interval: timedelta = timedelta(minutes=5)
    first_back_off: timedelta = timedelta(minutes=1)  # after a failure; doubles with each
    longest_back_off: timedelta = timedelta(hours=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerState:
    """What is known at this tick. Times are durations up to now, so that no clock is needed."""

    labels: int  # on the training side, now
    held_out_groups: int
    has_student: bool  # one was trained and published, approved or not
    labels_at_last_training: int = 0
    since_last_training: timedelta | None = None  # since it began; None: never
    candidate_waits: bool = False  # a promotable candidate waits for the operator
    training_runs: bool = False
    certified_coverage: float | None = None  # of the champion
    coverage_drop: float = 0.0  # sure drop, from `pipelines.statistics.coverage.coverage_drop`
    drift_alarm: bool = False
    serves_nothing: bool = False  # the champion has no threshold: the teacher answers everything
    asked_by_operator: bool = False
    failures_in_a_row: int = 0
    labels_per_day: float = 0.0  # as they came lately, on the training side
    groups_per_day: float = 0.0
    to_ask_again: int = 0  # questions that show how far the teacher agrees with itself


@dataclass(frozen=True, slots=True)
class Due:
    """Train now."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotDue:
    """Do not train now."""

    reason: str


def is_retrain_due(state: TriggerState, policy: TriggerPolicy) -> Due | NotDue:
    """The first rule that applies, from "impossible" over "too soon" to the triggers.

    An operator's wish skips the waiting, never the impossible.
    """
    blocked = _impossible(state)
    if blocked:
        return NotDue(blocked)
    if state.asked_by_operator:
        return Due(f"An operator asked for it; there are {state.labels} labels.")
    waiting = _too_soon(state, policy)
    if waiting:
        return NotDue(waiting)
    if not state.has_student:
        return _first_student(state, policy)
    return _next_student(state, policy)


def back_off(failures: int, policy: TriggerPolicy) -> timedelta:
    """How long to wait after so many failed trainings in a row."""
    if failures <= 0:
        return timedelta(0)
    doublings = min(failures - 1, 40)  # 2 ** 40 minutes are longer than any limit
    seconds = policy.first_back_off.total_seconds() * 2**doublings
    return timedelta(seconds=min(seconds, policy.longest_back_off.total_seconds()))


def _impossible(state: TriggerState) -> str | None:
    if state.training_runs:
        return "A training is running."
    if state.labels <= 0:
        return "There are no labels to train on."
    return None


def _too_soon(state: TriggerState, policy: TriggerPolicy) -> str | None:
    if state.since_last_training is None or state.since_last_training < timedelta(0):
        return None  # the latter: the clock was put back, and would hold it up for as long
    pause = back_off(state.failures_in_a_row, policy)
    if state.since_last_training < pause:
        times = "time" if state.failures_in_a_row == 1 else "times"
        return (
            f"Training failed {state.failures_in_a_row} {times} in a row; the next try is in "
            f"{_duration(pause - state.since_last_training)}."
        )
    # A failed training left nothing behind that an interval would have to space out.
    if not state.failures_in_a_row and state.since_last_training < policy.min_interval:
        return (
            f"The last training began {_duration(state.since_last_training)} ago; trainings "
            f"are at least {_duration(policy.min_interval)} apart."
        )
    return None


def _first_student(state: TriggerState, policy: TriggerPolicy) -> Due | NotDue:
    if state.labels < policy.min_labels:
        lacking = policy.min_labels - state.labels
        return NotDue(
            f"A first student needs {policy.min_labels} labels; there are {state.labels}"
            f"{_expected(lacking, state.labels_per_day)}."
        )
    if state.held_out_groups < policy.min_groups:
        return NotDue(
            f"A first student needs {policy.min_groups} held-out groups to be judged on; "
            f"there are {state.held_out_groups}"
            f"{_expected(policy.min_groups - state.held_out_groups, state.groups_per_day)}."
        )
    if state.to_ask_again:
        return NotDue(
            f"Before a first student is judged the teacher is asked {state.to_ask_again} questions "
            "again, to see how far it agrees with itself."
        )
    return Due(
        f"A first student: {state.labels} labels and {state.held_out_groups} held-out groups."
    )


def _next_student(state: TriggerState, policy: TriggerPolicy) -> Due | NotDue:
    new = state.labels - state.labels_at_last_training
    if new < policy.min_new_labels:
        return NotDue(
            f"{max(new, 0)} new labels since the last training; at least "
            f"{policy.min_new_labels} are needed."
        )
    wanted = policy.growth * state.labels_at_last_training
    if state.labels >= wanted:
        return Due(
            f"{state.labels} labels, {policy.growth:g} times the {state.labels_at_last_training} "
            f"of the last training."
        )
    if state.candidate_waits:
        # It was trained for the same alarm; another one would only use up the gate's items.
        return NotDue(
            f"A candidate waits for the operator; {state.labels} labels, the next training is "
            f"at {wanted:.0f}."
        )
    if state.drift_alarm:
        return Due(f"The traffic has drifted, and there are {new} new labels.")
    grown = SERVES_NOTHING_GROWTH * state.labels_at_last_training
    if state.serves_nothing and state.labels >= grown:
        return Due(f"The student answers nothing by itself, and there are {new} new labels.")
    if state.certified_coverage is not None and state.coverage_drop > policy.coverage_drop:
        return Due(
            f"Trusted coverage fell by {_points(state.coverage_drop)} points below the "
            f"{_points(state.certified_coverage)} % that were certified, and there are {new} new "
            f"labels."
        )
    return NotDue(
        f"{state.labels} labels; the next training is at {wanted:.0f} ({policy.growth:g} times "
        f"the {state.labels_at_last_training} of the last), at a drift alarm, or when trusted "
        f"coverage falls by more than {_points(policy.coverage_drop)} points."
    )


def _expected(lacking: int, per_day: float) -> str:
    """When the rest can be expected."""
    if per_day <= 0.0:
        return ", and none came lately"
    return f", the rest in about {_duration(timedelta(days=lacking / per_day))} at this pace"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _duration(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{seconds // 60} min"
    return f"{seconds // 3_600} h"
