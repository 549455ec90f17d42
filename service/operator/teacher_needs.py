"""What the teacher, and the money for it, leave to a person."""

from collections.abc import Iterator, Mapping

from pipelines.decide import above_ceiling
from pipelines.rates import Purse
from service.operator.need import NeedFacts, need
from service.operator.status import Labelling, Need, TaskStatus, Unusable
from service.operator.words import counted
from service.purses import Emptied

UNUSABLE = 5  # answers in a row that were no label, from which on somebody should know
REFUSED = "teacher_refused"


def terms(facts: NeedFacts) -> Iterator[Need]:
    if facts.teacher.model and not facts.teacher.terms_allow_training:
        yield need(
            "terms",
            "The teacher's terms are not recorded as allowing training: nothing is labelled or "
            "trained",
            "/#teacher",
            urgent=True,
            told=False,
        )


def of_the_teacher(status: TaskStatus) -> Iterator[Need]:
    """What the teacher itself leaves to a person."""
    if told := above_ceiling(status.target, status.figures.ceiling):
        yield need(
            "ceiling",
            f"The target of {status.task} is above what its teacher agrees with itself",
            "/#teacher",
            name=f"ceiling:{status.task}",
            text=told,
            over=f"The target of {status.task} is within what its teacher agrees with itself.",
            task=status.task,
        )
    if parked := status.figures.parked:
        yield need(
            "parked",
            f"The teacher of {status.task} contradicts itself about {counted(parked, 'prompt')}",
            f"/tasks/{status.task}/parked",
            text="They train no student until somebody says what is right.",
            task=status.task,
            told=False,
        )


def budgets(facts: NeedFacts) -> Iterator[Need]:
    labels, escalated, budget = facts.labels, facts.escalated, facts.budget
    for name, what, then, pairs in (
        (
            "labels",
            "label budget",
            "At its end labelling rests until midnight UTC; serving goes on.",
            (
                (labels.calls, budget.label_calls),
                (labels.tokens, budget.label_tokens),
                (labels.money, budget.label_money),
            ),
        ),
        (
            "escalations",
            "escalation budget",
            "At its end the student answers what it is unsure of, marked, until midnight UTC.",
            (
                (escalated.calls, budget.escalation_calls),
                (escalated.money, budget.escalation_money),
            ),
        ),
    ):
        share = max((used / limit for used, limit in pairs if limit), default=0.0)
        if share >= facts.budget_share:
            yield need(
                "budget",
                f"Today's {what} is nearly spent",
                "/",
                name=f"budget:{name}:{facts.today}",
                text=f"{then} The setting is `[budget]`.",
            )
    yield from _purses(facts)


# What stands still without its labels, by whose share pays for them.
STANDS_STILL: Mapping[Purse, tuple[str, str, str]] = {
    "audit": (
        "audits",
        "audit",
        "Live agreement is not brought up to date; neither a broken promise nor a worse champion "
        "is noticed.",
    ),
    "held_out": ("held-out prompts", "held-out prompt", "No student is judged on them."),
    "repeat": (
        "asking again",
        "question",
        "How far the teacher agrees with itself is not known, so neither is what can be reached.",
    ),
    "learning": (
        "training data",
        "prompt",
        "The next student does without them.",
    ),
}
EVIDENCE = ("audit", "held_out")


def _purses(facts: NeedFacts) -> Iterator[Need]:
    """Which share of the budget is used up, what waits for it, and what would end that."""
    for one in facts.emptied:
        share, noun, stands = STANDS_STILL[one.purse]
        yield need(
            "budget",
            f"Today's share of the label budget for {share} is spent; "
            f"{counted(one.waiting, noun)} {'waits' if one.waiting == 1 else 'wait'}",
            "/",
            name=f"budget:{one.purse}:{facts.today}",
            text=f"{stands} It goes on by itself at midnight UTC{_or_today(one)}.",
            told=one.purse in EVIDENCE,
        )


def _or_today(one: Emptied) -> str:
    wanted = " and ".join(f"`budget.{name} = {value:.10g}`" for name, value in one.enough.items())
    return f", and today with {wanted}" if wanted else ""


def calls(facts: NeedFacts) -> Iterator[Need]:
    """Teacher calls that nobody knows about, that were refused, or that brought no label."""
    yield from _unknown(facts.unknown)
    yield from _refused(facts.labelling)
    yield from _unusable(facts.labelling.unusable)


def _unknown(calls: int) -> Iterator[Need]:
    if calls:
        yield need(
            "unknown_outcomes",
            f"{counted(calls, 'teacher call')} may have been paid for without an answer",
            "/unknown-outcomes",
            detail="ask again, or drop",
            text="Held until somebody decides: ask again, or drop.",
            over="No teacher call is held any more.",
        )


def _unusable(found: Mapping[str, Unusable]) -> Iterator[Need]:
    for task, one in sorted(found.items()):
        if one.in_a_row < UNUSABLE:
            continue
        rests = (
            f" Nothing is bought for it until {one.rests_until:%H:%M} UTC; then a few are tried."
            if one.rests_until
            else ""
        )
        yield need(
            "unusable_answers",
            f"The last {one.in_a_row} answers of the teacher were no label of {task}",
            "/#teacher",
            name=f"unusable_answers:{task}",
            detail=f"the last one: {one.last}",
            text=f"They were paid for. The last one: {one.last}. Compare `labels`, "
            f"`answer_pointer` and `instructions` of [tasks.{task}] with what the teacher "
            f"answers, and `teacher.max_tokens` with how long it thinks.{rests}",
            over=f"The teacher's answers are labels of {task} again.",
            task=task,
            urgent=one.rests_until is not None,
        )


def _refused(heard: Labelling) -> Iterator[Need]:
    if heard.refuses:
        yield need(
            REFUSED,
            "The teacher refuses our calls",
            "/#teacher",
            detail=heard.said,
            text="Its key, the model's name, the account, or a parameter of ours. Nothing is "
            "labelled until it is repaired; `flywheel status` has what it said.",
            over="The teacher answers again.",
        )
