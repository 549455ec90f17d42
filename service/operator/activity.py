"""The feed: what happened lately, in sentences, newest first. No prompt text is in it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import get_args

from pipelines.decide import DECIDED, verdict_in_words
from pipelines.guard import Guard
from pipelines.types import Decision
from service.operator.status import Activity, ActivityKind
from service.operator.words import counted
from storage.database import Cursor
from storage.dead_letters import dead_letter_bursts
from storage.decisions import recent_decisions
from storage.evaluations import StoredEvaluation, recent_evaluations
from storage.guards import recent_shifts
from storage.runs import TrainingRun, ended_runs, started_runs
from storage.swaps import Swap, recent_swaps
from storage.ticks import Failures, Pause, failures, pauses
from storage.traffic import StoredGap, recent_gaps
from storage.versions import versions

KINDS: tuple[ActivityKind, ...] = get_args(ActivityKind)

Numbers = Mapping[tuple[str, str], int]  # (task, student) -> number


def recent_activity(
    tx: Cursor,
    tasks: Sequence[str],
    now: datetime,
    limit: int,
    *,
    before: datetime | None = None,
    kind: ActivityKind | None = None,
) -> list[Activity]:
    """At most so many entries of one kind or of all, newest first.

    Each source gives its newest `limit`: what is cut off is older than what is returned, so the
    next page begins where this one ends.
    """
    numbers = {(task, v.student): v.number for task in tasks for v in versions(tx, task)}
    feed: list[Activity] = []
    if kind in (None, "decision"):
        feed += [_decision(link, numbers) for link in recent_decisions(tx, limit, before)]
    if kind in (None, "evaluation"):
        feed += [_evaluation(found, numbers) for found in recent_evaluations(tx, limit, before)]
    if kind in (None, "training"):
        feed += [_started(run) for run in started_runs(tx, limit, before)]
        feed += [_ended(run, numbers) for run in ended_runs(tx, limit, before)]
    if kind in (None, "swap"):
        names = {v.name: v.number for task in tasks for v in versions(tx, task)}
        feed += [_swap(swap, names) for swap in recent_swaps(tx, limit, before)]
    if kind in (None, "trouble"):
        feed += _trouble(tx, now, limit, before)
    return sorted(feed, key=lambda entry: entry.at, reverse=True)[:limit]


def _trouble(tx: Cursor, now: datetime, limit: int, before: datetime | None) -> list[Activity]:
    feed = [_failures(found) for found in failures(tx, limit, before)]
    feed += [_guard(found) for found in recent_shifts(tx, now, limit, before)]
    feed += [_gap(gap) for gap in recent_gaps(tx, limit, before)]
    feed += [_burst(at, count) for at, count in dead_letter_bursts(tx, limit, before)]
    standing = [pause for pause in pauses(tx) if before is None or pause.paused_at < before]
    return feed + [_pause(pause) for pause in standing]


def _decision(link: Decision, numbers: Numbers) -> Activity:
    name = _name(link.task, link.student, numbers)
    because = f": {link.reason}" if link.reason else ""
    return Activity(
        at=link.decided_at,
        kind="decision",
        sentence=f"{link.operator} {DECIDED[link.action]} {name}{because}",
        task=link.task,
        link=_link(link.task, link.student, numbers),
        problem=link.action == "rollback",
    )


def _evaluation(found: StoredEvaluation, numbers: Numbers) -> Activity:
    name = _name(found.task, found.digest, numbers)
    verdict = verdict_in_words(found.verdict, champion=found.champion)
    if found.promotable:
        ending = "; it can be approved"
    else:
        ending = "" if found.verdict == "insufficient_evidence" else "; the gate says no"
    return Activity(
        at=found.evaluated_at,
        kind="evaluation",
        sentence=f"{name} was evaluated on {found.items:,} held-out items: {verdict}{ending}",
        task=found.task,
        link=_link(found.task, found.digest, numbers),
    )


def _started(run: TrainingRun) -> Activity:
    return Activity(
        at=run.started_at,
        kind="training",
        sentence=f"Training of {run.task} started: {run.reason}",
        task=run.task,
    )


def _ended(run: TrainingRun, numbers: Numbers) -> Activity:
    ended = run.ended_at or run.started_at
    seconds = (ended - run.started_at).total_seconds()
    if run.status == "failed":
        sentence = f"Training of {run.task} failed after {seconds:.0f} s: {run.failure}"
    else:
        name = _name(run.task, run.student or "", numbers)
        sentence = f"Training of {name} took {seconds:.0f} s"
    return Activity(
        at=ended,
        kind="training",
        sentence=sentence,
        task=run.task,
        link=_link(run.task, run.student or "", numbers),
        problem=run.status == "failed",
    )


def _swap(swap: Swap, numbers: Mapping[str, int]) -> Activity:
    number = numbers.get(swap.version)
    name = swap.version if number is None else f"{swap.task}-v{number}"
    who = counted(swap.gateways, "gateway")
    what = f"{who} began to serve {name}" if swap.version else f"{who} let the teacher answer"
    if swap.problem:
        what = f"{who} would not follow what is published: {swap.problem}"
    return Activity(
        at=swap.at,
        kind="swap",
        sentence=what,
        task=swap.task,
        link=None if number is None else f"/tasks/{swap.task}/versions/{number}",
        problem=bool(swap.problem),
    )


def _failures(found: Failures) -> Activity:
    times = "" if found.times == 1 else f" {found.times:,} times"
    return Activity(
        at=found.at,
        kind="trouble",
        sentence=f"{found.job} failed{times}: {found.detail}",
        link="/#jobs",
        problem=True,
    )


def _guard(found: Guard) -> Activity:
    if found.ended_at == found.changed_at:  # of one whose student was replaced, nothing changed
        sentence = f"The traffic of {found.task} is again what its student was approved for"
    elif found.kind == "novel":
        sentence = f"Much of what {found.task} is asked is new to it: {found.reason}"
    elif found.threshold is None:
        sentence = f"Nothing that the student of {found.task} says is trusted: {found.reason}"
    else:
        sentence = f"{found.task} is trusted from {found.threshold:g} on only: {found.reason}"
    return Activity(
        at=found.changed_at,
        kind="trouble",
        sentence=sentence,
        task=found.task,
        problem=found.ended_at is None,
    )


def _gap(gap: StoredGap) -> Activity:
    return Activity(
        at=gap.noticed_at,
        kind="trouble",
        sentence=f"{counted(gap.records, 'record')} of {gap.topic}/{gap.partition} were removed "
        "by the topic's retention before they were read",
        problem=True,
    )


def _burst(at: datetime, count: int) -> Activity:
    return Activity(
        at=at,
        kind="trouble",
        sentence=f"{counted(count, 'record')} could not be read",
        link="/dead-letters",
        problem=True,
    )


def _pause(pause: Pause) -> Activity:
    what = "the whole learner" if pause.job == "all" else pause.job
    return Activity(
        at=pause.paused_at,
        kind="trouble",
        sentence=f"{pause.paused_by} paused {what}; it is paused still",
        link="/#jobs",
        problem=True,
    )


def _name(task: str, student: str, numbers: Numbers) -> str:
    number = numbers.get((task, student))
    return f"{task}-v{number}" if number is not None else f"{task} {student[:8]}"


def _link(task: str, student: str, numbers: Numbers) -> str | None:
    number = numbers.get((task, student))
    return None if number is None else f"/tasks/{task}/versions/{number}"
