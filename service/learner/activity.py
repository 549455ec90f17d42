"""The feed: what happened lately, in sentences, newest first."""

from collections.abc import Mapping, Sequence

from pipelines.types import Decision
from service.learner.status import Activity
from storage.database import Cursor
from storage.decisions import recent_decisions
from storage.students import (
    StoredEvaluation,
    TrainingRun,
    recent_evaluations,
    runs,
    versions,
)
from storage.ticks import Tick, failed_ticks

VERDICTS = {
    "better": "better than the champion",
    "non_inferior": "no worse than the champion",
    "worse": "worse than the champion",
    "insufficient_evidence": "too little evidence to tell",
}
VERBS = {"approve": "approved", "reject": "rejected", "rollback": "rolled back to"}

Numbers = Mapping[tuple[str, str], int]  # (task, student) -> number


def recent_activity(tx: Cursor, tasks: Sequence[str], limit: int) -> list[Activity]:
    """Decisions, evaluations, training runs and failed ticks of these tasks."""
    numbers = {(task, v.student): v.number for task in tasks for v in versions(tx, task)}
    feed = [_decision(link, numbers) for link in recent_decisions(tx, limit)]
    feed += [_evaluation(found, numbers) for found in recent_evaluations(tx, limit)]
    for task in tasks:
        for run in runs(tx, task, limit):
            feed += _run(run, numbers)
    feed += [_tick(tick) for tick in failed_ticks(tx, limit)]
    return sorted(feed, key=lambda entry: entry.at, reverse=True)[:limit]


def _decision(link: Decision, numbers: Numbers) -> Activity:
    name = _name(link.task, link.student, numbers)
    because = f": {link.reason}" if link.reason else ""
    return Activity(
        at=link.decided_at,
        kind="decision",
        sentence=f"{link.operator} {VERBS[link.action]} {name}{because}",
        task=link.task,
        link=_link(link.task, link.student, numbers),
        problem=link.action == "rollback",
    )


def _evaluation(found: StoredEvaluation, numbers: Numbers) -> Activity:
    name = _name(found.task, found.digest, numbers)
    if found.champion is None and found.verdict == "better":
        verdict = "better than every rival"
    else:
        verdict = VERDICTS[found.verdict]
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


def _run(run: TrainingRun, numbers: Numbers) -> list[Activity]:
    entries = [
        Activity(
            at=run.started_at,
            kind="training",
            sentence=f"Training of {run.task} started: {run.reason}",
            task=run.task,
        )
    ]
    if run.ended_at is None:
        return entries
    seconds = (run.ended_at - run.started_at).total_seconds()
    if run.status == "failed":
        sentence = f"Training of {run.task} failed after {seconds:.0f} s: {run.failure}"
    else:
        name = _name(run.task, run.student or "", numbers)
        sentence = f"Training of {name} took {seconds:.0f} s"
    return [
        Activity(
            at=run.ended_at,
            kind="training",
            sentence=sentence,
            task=run.task,
            link=_link(run.task, run.student or "", numbers),
            problem=run.status == "failed",
        ),
        *entries,
    ]


def _tick(tick: Tick) -> Activity:
    return Activity(
        at=tick.ended_at or tick.started_at,
        kind="tick",
        sentence=f"{tick.job} failed: {tick.detail}",
        link="/#jobs",
        problem=True,
    )


def _name(task: str, student: str, numbers: Numbers) -> str:
    number = numbers.get((task, student))
    return f"{task}-v{number}" if number is not None else f"{task} {student[:8]}"


def _link(task: str, student: str, numbers: Numbers) -> str | None:
    number = numbers.get((task, student))
    return None if number is None else f"/tasks/{task}/versions/{number}"
