"""What only a person can settle: one list, for the console and for who is told outside."""

from collections import Counter
from collections.abc import Iterator, Mapping

from pipelines.chat_request import NOT_ANSWERED
from pipelines.types import BY_ITSELF
from service.operator.need import NeedFacts, need
from service.operator.status import HoldReason, Need, TaskStatus
from service.operator.teacher_needs import budgets, calls, of_the_teacher, terms
from service.operator.words import counted

FORCED_SHARE = 0.01  # of a day's requests, from which on somebody should know
REPEATEDLY = 2  # failed trainings in a row: then it is told outside, too
PAST_FROM, PAST_SHARE = 20, 0.1  # requests, and of all, from which on somebody should know
WHY_PAST: Mapping[str, str] = {
    "format": "a response_format that its answers do not have",
    "not_allowed": "a schema that the student's answer did not fit",
    "tools": "tools that the answer may call",
    "content": "images, sounds or files",
    "choices": "n above 1",
    "logprobs": "logprobs",
    "audio": "answers as sound",
    "endpoint": "an endpoint without a student",
    "long": "texts too long to be kept",
    "state": "state that is kept elsewhere",
    "stored": "answers to be stored, which `stateless = true` in the task does without",
    "malformed": "messages that cannot be read",
}


def needs(facts: NeedFacts) -> tuple[Need, ...]:
    """Everything that wants a person, the most pressing first. No prompt's text is in it."""
    return (
        *_approvals(facts),
        *terms(facts),
        *(one for task in facts.tasks for one in _of_task(task, facts.failures)),
        *_unlike(facts),
        *_past_students(facts),
        *budgets(facts),
        *_held(facts.held),
        *calls(facts),
        *_letters(facts.letters),
        *_paused(facts),
    )


def _approvals(facts: NeedFacts) -> Iterator[Need]:
    for task in facts.tasks:
        if version := task.waiting:
            yield need(
                "approval",
                f"{task.task}-v{version.number} waits for your approval",
                f"/tasks/{task.task}/versions/{version.number}",
                name=f"approval:{task.task}:{version.student}",
                text=" ".join(
                    part
                    for part in (
                        "It passed the gate.",
                        version.serves_nothing,
                        version.above_ceiling,
                        "Look at its report, then approve or reject it.",
                    )
                    if part
                ),
                over=f"{task.task}-v{version.number} does not wait any more.",
                task=task.task,
                urgent=True,
            )


def _of_task(status: TaskStatus, failures: Mapping[str, int]) -> Iterator[Need]:
    yield from _failed(status, failures.get(status.task, 0))
    yield from of_the_teacher(status)
    champion = status.champion
    if champion is None:
        return
    page = f"/tasks/{status.task}/versions/{champion.number}"
    if champion.decided_by == BY_ITSELF and champion.decided_at is not None:
        yield need(
            "rollback",
            f"{status.task} was rolled back to version {champion.number} by itself",
            page,
            name=f"rollback:{status.task}:{champion.decided_at.isoformat()}",
            text="The version after it agreed with the teacher less than it should. Look at "
            "what it got wrong before another one is approved.",
            task=status.task,
        )
    yield from _guards(status, page)
    forced = status.figures.forced_share
    if forced is not None and forced >= FORCED_SHARE:
        yield need(
            "forced_answers",
            f"{status.task} answers {forced:.1%} of the requests although it is unsure",
            page,
            name=f"forced_answers:{status.task}",
            text="The escalation budget is gone, or the teacher does not answer: such answers are "
            "marked with a header, and nothing is promised of them. Raise "
            "`budget.escalation_calls`, or set `when_unsure` to `refuse`.",
            over=f"{status.task} has somebody to ask again.",
            task=status.task,
        )
    served = status.figures.served_agreement
    if served is not None and served.high < status.target:
        yield need(
            "agreement",
            f"{status.task} agrees with its teacher less than promised",
            page,
            name=f"agreement:{status.task}:{champion.number}",
            text=f"Even the upper end of the interval, {served.high:.1%}, is below the target "
            f"of {status.target:.1%}. Roll back, or look at what changed.",
            over=f"The live agreement of {status.task} is not below its target any more.",
            task=status.task,
        )


def _guards(status: TaskStatus, page: str) -> Iterator[Need]:
    for guard in status.figures.guards:
        if guard.kind == "novel":  # the loop learns them by itself
            continue
        trusted = (
            "nothing" if guard.threshold is None else f"confidences from {guard.threshold:g} on"
        )
        yield need(
            "threshold_raised",
            f"{status.task} is trusted less than was approved",
            page,
            name=f"threshold_raised:{status.task}:{guard.kind}",
            text=f"{guard.reason} Trusted is {trusted} for now; the teacher answers the rest, and "
            "a training starts when there are labels for it.",
            over=f"{status.task} is trusted again as it was approved.",
            task=status.task,
            urgent=guard.kind == "audits",
            told=status.figures.shifted,  # what is over within minutes is worth no message
        )


def _failed(status: TaskStatus, times: int) -> Iterator[Need]:
    """In the list from the first failure on; told outside when it is no accident."""
    last = status.last_run
    if not times:
        return
    yield need(
        "training_failed",
        f"Training of {status.task} failed {times} times in a row"
        if times >= REPEATEDLY
        else f"The last training of {status.task} failed",
        "/#activity",
        name=f"training_failed:{status.task}",
        detail=(last.failure or "") if last and last.status == "failed" else "",
        text="The champion serves on, but learns nothing new. The console has the reason.",
        over=f"A training of {status.task} succeeded.",
        task=status.task,
        told=times >= REPEATEDLY,
    )


HOLDS: Mapping[HoldReason, tuple[str, str, str]] = {
    "disk": (
        "Ingest is held: the disk is nearly full",
        "Nothing is lost while the topic keeps its records. Make room; it goes on by itself.",
        "/",
    ),
    "poison": (
        "Ingest paused itself: almost nothing on the topic can be read",
        "Find the producer, look at the dead letters, then `flywheel resume ingest`.",
        "/dead-letters",
    ),
}


def _held(why: HoldReason | None) -> Iterator[Need]:
    """Who paused it himself need not be told."""
    if why is not None and why in HOLDS:
        title, text, link = HOLDS[why]
        yield need(
            "ingest_held",
            title,
            link,
            name=f"ingest_held:{why}",
            text=text,
            over="Ingest goes on.",
        )


def _past_students(facts: NeedFacts) -> Iterator[Need]:
    """Requests that no student may answer. Where that is all, nothing is ever learned."""
    for status in facts.tasks:
        task, asked, reasons = status.task, status.requests, Counter(status.past)
        if (past := reasons.total()) < max(PAST_FROM, PAST_SHARE * asked):
            continue
        why = ", ".join(f"{WHY_PAST.get(name, name)} ({n:,})" for name, n in reasons.most_common())
        yield need(
            "requests_past",
            f"{past:,} of {asked:,} requests for {task} went past its student",
            "/",
            name=f"requests_past:{task}",
            detail=why,
            text=f"In the last day: {why}. The teacher answers them; {_learned(reasons)}. "
            'The how-to "describe a task" says what a student can answer.',
            over=f"Requests for {task} reach its student again.",
            task=task,
            urgent=past > asked / 2,
        )


def _unlike(facts: NeedFacts) -> Iterator[Need]:
    """Approval would break the app, so nothing is promotable: it is trained in vain."""
    for status in facts.tasks:
        if status.unlike:
            yield need(
                "answer_shape",
                f"A student of {status.task} would answer otherwise than the app is answered today",
                "/",
                name=f"answer_shape:{status.task}",
                detail=status.unlike,
                text=f"{status.unlike} No candidate is promotable until both look alike: see "
                f"`answer_pointer` of [tasks.{status.task}], and what the app asks for.",
                over=f"Students of {status.task} answer as the app is answered today.",
                task=status.task,
                urgent=True,
            )


def _learned(reasons: Counter[str]) -> str:
    lost = sum(count for why, count in reasons.items() if why not in NOT_ANSWERED)
    if not lost:
        return "students learn from them all the same"
    return (
        "no student learns from them"
        if lost == reasons.total()
        else (f"from {lost:,} of them no student learns")
    )


def _letters(letters: int) -> Iterator[Need]:
    if letters:
        yield need(
            "dead_letters",
            f"{counted(letters, 'record')} could not be read",
            "/dead-letters",
            told=False,
        )


def _paused(facts: NeedFacts) -> Iterator[Need]:
    paused = [job.job for job in facts.jobs if job.paused]
    if facts.all_paused or paused:
        what = "The whole learner is" if facts.all_paused else f"{', '.join(paused)}:"
        yield need("paused", f"{what} paused", "/#jobs", told=False)
