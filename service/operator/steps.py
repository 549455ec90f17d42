"""The loop of one task, step by step: its last run, its next one, and why it does nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pipelines.decide import verdict_in_words
from pipelines.types import BY_ITSELF, Decision
from service.operator.status import (
    SILENT,
    Figures,
    GatewaySeen,
    IngestState,
    JobStatus,
    Progress,
    Step,
    StepName,
    StepState,
    Version,
)
from service.operator.words import counted, sentence
from storage.datasets import StoredDataset
from storage.reports import Report
from storage.runs import TrainingRun
from storage.ticks import Tick

LATELY = timedelta(minutes=5)  # over which prompts are counted
DRAWN = timedelta(hours=1)  # over which samples are counted
QUIET = timedelta(minutes=1)  # without a record, ingest is idle
REASONS_SHOWN = 3
STATE_OF_TICK: Mapping[str, StepState] = {
    "running": "working",
    "done": "done",
    "nothing": "idle",
    "failed": "failed",
    "paused": "paused",
    "missed": "idle",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopFacts:
    """All that the steps of one task are told from."""

    now: datetime
    task: str
    figures: Figures
    jobs: Mapping[str, JobStatus]
    worked: Mapping[str, Tick]  # the last tick of each job that did something
    ingest: IngestState
    stored_at: datetime | None  # when a batch was stored last
    lately: int  # prompts of the last minutes
    drawn: Mapping[str, int]  # samples of the last hour, by reason
    drawn_at: datetime | None
    dataset: StoredDataset | None
    last_run: TrainingRun | None
    progress: Progress | None
    judged: Version | None  # the version that was evaluated last
    report: Report | None  # of that evaluation
    champion: Version | None
    waiting: Version | None
    decision: Decision | None  # the last one
    decided: str  # the version that it was about
    gateways: Sequence[GatewaySeen]
    swapped_at: datetime | None  # when a gateway last changed over


def loop_steps(facts: LoopFacts) -> tuple[Step, ...]:
    """The ten steps, in the order of a prompt's way."""
    return (
        _ingest(facts),
        _sample(facts),
        _label(facts),
        _dataset(facts),
        _train(facts),
        _evaluate(facts),
        _gate(facts),
        _approve(facts),
        _swap(facts),
        _watch(facts),
    )


def _ingest(facts: LoopFacts) -> Step:
    job = facts.jobs.get("ingest")
    state: StepState = "working"
    why = ""
    if job and job.paused:
        state, why = "paused", _paused(job)
    elif facts.ingest.held:
        state, why = "failed", sentence(facts.ingest.held)
    elif facts.stored_at is None:
        state, why = "idle", "No record has come yet."
    elif facts.now - facts.stored_at > QUIET:
        state, why = "idle", "No record has come since."
    behind = f"; {facts.ingest.lag:,} records not read yet" if facts.ingest.lag else ""
    return Step(
        name="ingest",
        state=state,
        did=f"{counted(facts.lately, 'prompt')} in the last 5 minutes{behind}."
        if facts.stored_at
        else "",
        last_at=facts.stored_at,
        why=why,
        next="all the time",
    )


def _sample(facts: LoopFacts) -> Step:
    total = sum(facts.drawn.values())
    most = list(facts.drawn.items())[:REASONS_SHOWN]
    reasons = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in most)
    more = " and others" if len(facts.drawn) > REASONS_SHOWN else ""
    return Step(
        name="sample",
        state="done" if total else "idle",
        did=f"{total:,} chosen in the last hour: {reasons}{more}." if total else "",
        last_at=facts.drawn_at,
        why="" if total else "No prompt of the last hour was drawn.",
        next="with each batch",
    )


def _label(facts: LoopFacts) -> Step:
    waits = facts.figures.pending_samples
    step = _of_job(facts, "label", "relabel")
    if not waits or step.state == "paused":
        return step
    more = f"{counted(waits, 'sample')} wait{'s' if waits == 1 else ''} for the teacher."
    said = "" if step.why.startswith("No sample waits") else step.why  # some have come since
    return replace(step, why=f"{said} {more}".strip())


def _dataset(facts: LoopFacts) -> Step:
    made = facts.dataset
    if made is None:
        return Step(
            name="dataset",
            state="idle",
            why="None was needed yet.",
            next="with the next training",
        )
    return Step(
        name="dataset",
        state="done",
        did=f"{made.examples:,} examples to train on and {made.held_out:,} held out, "
        f"from {made.labels:,} labels.",
        last_at=made.created_at,
        next="with the next training",
    )


def _train(facts: LoopFacts) -> Step:
    run, job = facts.last_run, facts.jobs.get("train")
    next_at = job.next_at if job else None
    paused = job is not None and job.paused
    why = _paused(job) if job and job.paused else facts.figures.trigger
    if run is None:
        state: StepState = "paused" if paused else "idle"
        return Step(name="train", state=state, why=why, next_at=next_at, next="when one is due")
    if run.status == "running":
        return Step(
            name="train",
            state="working",
            did=f"{sentence(run.reason)} {progress_sentence(facts.progress)}".strip(),
            last_at=run.started_at,
            next_at=next_at,
        )
    state = "paused" if paused else "failed" if run.status == "failed" else "done"
    seconds = (run.ended_at - run.started_at).total_seconds() if run.ended_at else 0.0
    did = (
        f"Failed after {seconds:.0f} s: {run.failure}"
        if run.status == "failed"
        else f"Took {seconds:.0f} s. {sentence(run.reason)}"
    )
    return Step(
        name="train",
        state=state,
        did=did,
        last_at=run.ended_at or run.started_at,
        why=why,
        next_at=next_at,
        next="when one is due",
    )


def _evaluate(facts: LoopFacts) -> Step:
    job, judged = facts.jobs.get("evaluate"), facts.judged
    training = facts.last_run is not None and facts.last_run.status == "running"
    step = _of_job(facts, "evaluate", "evaluate")
    state: StepState = step.state
    if facts.progress and facts.progress.phase == "answer" and not training:
        state = "working"
    elif state == "idle" and judged:
        state = "done" if not step.why else "idle"
    did = step.did
    report = facts.report
    if judged and report:
        verdict = verdict_in_words(report.gate.verdict, champion=report.champion)
        did = f"{short(judged)} was compared on the same held-out items: {verdict}."
    if state == "working":
        did = progress_sentence(facts.progress) or did
    return Step(
        name="evaluate",
        state=state,
        did=did,
        last_at=judged.evaluated_at if judged else step.last_at,
        why=step.why,
        next_at=job.next_at if job else None,
        next="after each training",
        link=link(judged),
    )


def _gate(facts: LoopFacts) -> Step:
    judged, gate = facts.judged, facts.report.gate if facts.report else None
    if judged is None or gate is None:
        return Step(
            name="gate", state="idle", why="No version to judge yet.", next="with each evaluation"
        )
    failed = [check.sentence for check in gate.checks if not check.passed]
    passed = len(gate.checks) - len(failed)
    did = f"{short(judged)}: {passed} of {len(gate.checks)} checks passed."
    return Step(
        name="gate",
        state="done" if gate.promotable else "refused",
        did=did if not failed else f"{did} {failed[0]}",
        last_at=judged.evaluated_at,
        next="with each evaluation",
        link=link(judged),
    )


def _approve(facts: LoopFacts) -> Step:
    decision = facts.decision
    verbs = {"approve": "approved", "reject": "rejected", "rollback": "rolled back to"}
    did = f"{decision.operator} {verbs[decision.action]} {facts.decided}." if decision else ""
    if facts.waiting:
        return Step(
            name="approve",
            state="waiting",
            did=did,
            last_at=decision.decided_at if decision else None,
            why=f"{short(facts.waiting)} waits for you.",
            next="yours",
            link=link(facts.waiting),
        )
    return Step(
        name="approve",
        state="done" if decision else "idle",
        did=did,
        last_at=decision.decided_at if decision else None,
        why="No version waits.",
        next="when the gate lets one through",
    )


def _swap(facts: LoopFacts) -> Step:
    champion = facts.champion
    told = [one for one in facts.gateways if facts.now - one.heard_at <= SILENT]
    silent = len(facts.gateways) - len(told)
    if champion is None:
        return Step(
            name="swap",
            state="idle",
            why="Nothing is published: no version was approved yet.",
            next="with the first approval",
        )
    following = [one for one in told if one.serving.get(facts.task) == champion.name]
    problems = [one.failed[facts.task] for one in told if facts.task in one.failed]
    state: StepState = "done" if following else "idle"
    serve = "serves" if len(told) == 1 else "serve"
    did, why = f"{len(following)} of {counted(len(told), 'gateway')} {serve} {short(champion)}.", ""
    if problems:
        state, why = "failed", sentence(problems[0])
    elif not told:
        state, did, why = "idle", f"{short(champion)} is published.", "No gateway has reported."
    elif len(following) < len(told):
        state = "working"
    if silent:
        why = f"{why} {counted(silent, 'gateway')} fell silent.".strip()
    return Step(
        name="swap",
        state=state,
        did=did,
        last_at=facts.swapped_at,
        why=why,
        next="with the next approval",
        link=link(champion),
    )


def _watch(facts: LoopFacts) -> Step:
    step = _of_job(facts, "watch", "watch")
    figures = facts.figures
    parts = []
    if figures.trusted_coverage:
        parts.append(f"trusted coverage {100 * figures.trusted_coverage.value:.1f} %")
    if figures.agreement:
        parts.append(f"agreement {100 * figures.agreement.value:.1f} %")
    did = f"Saw {' and '.join(parts)}." if parts else ""
    if not did and step.state == "done":
        did = "Looked: there is no student to measure yet."
    return Step(
        name="watch",
        state=step.state,
        did=did if step.state != "failed" else step.did,
        last_at=step.last_at,
        why=step.why,
        next_at=step.next_at,
    )


def _of_job(facts: LoopFacts, name: StepName, job_name: str) -> Step:
    """A step that is one scheduled job: what it did last, and why not since."""
    job, worked = facts.jobs.get(job_name), facts.worked.get(job_name)
    last = job.last if job else None
    state: StepState = "idle"
    if job and job.paused:
        state = "paused"
    elif last:
        state = STATE_OF_TICK[last.outcome]
    why = ""
    if job and job.paused:
        why = _paused(job)
    elif last and last.outcome == "nothing":
        why = sentence(last.detail)
    elif last and last.outcome == "missed":
        why = f"The last tick was missed: {last.detail}."
    elif last is None:
        why = "It has not run yet."
    return Step(
        name=name,
        state=state,
        did=sentence(worked.detail) if worked else "",
        last_at=(worked.ended_at or worked.started_at) if worked else None,
        why=why,
        next_at=job.next_at if job else None,
    )


def _paused(job: JobStatus) -> str:
    if job.job == "ingest" and job.paused_by == BY_ITSELF:
        return "Paused by itself: too many records could not be read. Resume it when they can."
    return f"Paused by {job.paused_by}."


def progress_sentence(progress: Progress | None) -> str:
    """`Tune: step 310 of 480, loss 0.43, 12 s left.`"""
    if progress is None:
        return ""
    parts = [f"{progress.phase.capitalize()}: step {progress.step:,} of {progress.total:,}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3g}")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left:.0f} s left")
    return ", ".join(parts) + "."


def short(version: Version) -> str:
    return f"{version.task}-v{version.number}"


def link(version: Version | None) -> str | None:
    return None if version is None else f"/tasks/{version.task}/versions/{version.number}"
