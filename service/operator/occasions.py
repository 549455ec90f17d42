"""The occasions on which an operator is needed, read from what the learner knows now."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from service.metrics import LearnerMetrics
from service.operator.operations import AUTOMATIC, Operations
from service.operator.overview import counted
from service.operator.status import HoldReason, Status, TaskStatus
from service.sections import NotifyKind
from service.settings import Settings
from storage.database import Database
from storage.leases import Spend
from storage.ledger import Ledger
from storage.runs import runs

REPEATEDLY = 2  # failed trainings in a row
RUNS_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """One thing that wants a person. No prompt's text is in it."""

    name: str  # the same name is the same occasion
    kind: NotifyKind | Literal["hello"]
    title: str
    text: str  # what it means and what to do
    page: str  # of the console
    task: str = ""
    over: str = ""  # what there is to say when nobody is needed any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What holds now. Of the names in `unclear` nobody can tell at the moment."""

    present: tuple[Occasion, ...]
    unclear: frozenset[str] = frozenset()


class TeacherWord:
    """What the teacher last said about our key. Unknown until the first call."""

    def __init__(self, metrics: LearnerMetrics) -> None:
        self._metrics = metrics
        self.refuses: bool | None = None

    def note(self, outcome: str) -> None:
        """One call has ended. Busy, slow or broken teachers say nothing about the key."""
        self._metrics.teacher_calls.labels(outcome=outcome).inc()
        if outcome in ("received", "refused"):
            self.refuses = outcome == "refused"


class Occasions:
    """Looks at everything that may want a person. Reads only, so it works on a full disk."""

    def __init__(
        self,
        *,
        operations: Operations,
        database: Database,
        ledger: Ledger,
        settings: Settings,
        teacher: TeacherWord,
        why_held: Callable[[], HoldReason | None],
        escalated: Callable[[], Spend],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._operations = operations
        self._database = database
        self._ledger = ledger
        self._settings = settings
        self._teacher = teacher
        self._why_held = why_held
        self._escalated = escalated
        self._now = now

    def look(self) -> Seen:
        """Every occasion there is now, whether anybody wants to be told or not."""
        status = self._operations.status()
        found = [
            *_waiting(status),
            *(one for task in status.tasks for one in self._of_task(task)),
            *self._budgets(),
            *_held(self._why_held()),
            *_unknown(status.unknown_outcomes),
        ]
        if self._teacher.refuses:
            found.append(REFUSED)
        unclear = frozenset({REFUSED.name}) if self._teacher.refuses is None else frozenset()
        return Seen(present=tuple(found), unclear=unclear)

    def _of_task(self, status: TaskStatus) -> Iterator[Occasion]:
        failures = self._failures_in_a_row(status.task)
        if failures >= REPEATEDLY:
            yield Occasion(
                name=f"training_failed:{status.task}",
                kind="training_failed",
                title=f"Training of {status.task} failed {failures} times in a row",
                text="The champion serves on, but learns nothing new. The console has the reason.",
                page="/#activity",
                task=status.task,
                over=f"A training of {status.task} succeeded.",
            )
        champion = status.champion
        if champion is None:
            return
        page = f"/tasks/{status.task}/versions/{champion.number}"
        if champion.decided_by == AUTOMATIC and champion.decided_at is not None:
            yield Occasion(
                name=f"rollback:{status.task}:{champion.decided_at.isoformat()}",
                kind="rollback",
                title=f"{status.task} was rolled back to version {champion.number} by itself",
                text="The version after it agreed with the teacher less than it should. Look at "
                "what it got wrong before another one is approved.",
                page=page,
                task=status.task,
            )
        served = status.figures.served_agreement
        if served is not None and served.high < status.target:
            yield Occasion(
                name=f"agreement:{status.task}:{champion.number}",
                kind="agreement",
                title=f"{status.task} agrees with its teacher less than promised",
                text=f"Even the upper end of the interval, {served.high:.1%}, is below the target "
                f"of {status.target:.1%}. Roll back, or look at what changed.",
                page=page,
                task=status.task,
                over=f"The live agreement of {status.task} is not below its target any more.",
            )

    def _failures_in_a_row(self, task: str) -> int:
        with self._database.snapshot() as tx:
            past = [run for run in runs(tx, task, RUNS_SHOWN) if run.status != "running"]
        for number, run in enumerate(past):
            if run.status != "failed":
                return number
        return len(past)

    def _budgets(self) -> Iterator[Occasion]:
        budget, today = self._settings.budget, self._now().astimezone(UTC).date()
        labels, escalated = self._ledger.spent_on(self._now()), self._escalated()
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
            if share >= self._settings.notify.budget_share:
                yield Occasion(
                    name=f"budget:{name}:{today}",
                    kind="budget",
                    title=f"Today's {what} is nearly spent",
                    text=f"{then} The setting is `[budget]`.",
                    page="/",
                )


def _waiting(status: Status) -> Iterator[Occasion]:
    for task in status.tasks:
        if version := task.waiting:
            yield Occasion(
                name=f"approval:{task.task}:{version.student}",
                kind="approval",
                title=f"{task.task}-v{version.number} waits for approval",
                text="It passed the gate. Look at its report, then approve or reject it.",
                page=f"/tasks/{task.task}/versions/{version.number}",
                task=task.task,
                over=f"{task.task}-v{version.number} does not wait any more.",
            )


HOLDS: dict[HoldReason, tuple[str, str]] = {
    "disk": (
        "Ingest is held: the disk is nearly full",
        "Nothing is lost while the topic keeps its records. Make room; it goes on by itself.",
    ),
    "poison": (
        "Ingest paused itself: almost nothing on the topic can be read",
        "Find the producer, look at the dead letters, then `flywheel resume ingest`.",
    ),
}


def _held(why: HoldReason | None) -> Iterator[Occasion]:
    """Who paused it himself need not be told."""
    if why is not None and why in HOLDS:
        title, text = HOLDS[why]
        yield Occasion(
            name=f"ingest_held:{why}",
            kind="ingest_held",
            title=title,
            text=text,
            page="/dead-letters" if why == "poison" else "/",
            over="Ingest goes on.",
        )


def _unknown(calls: int) -> Iterator[Occasion]:
    if calls:
        yield Occasion(
            name="unknown_outcomes",
            kind="unknown_outcomes",
            title=f"{counted(calls, 'teacher call')} may have been paid for without an answer",
            text="Held until somebody decides: ask again, or drop.",
            page="/unknown-outcomes",
            over="No teacher call is held any more.",
        )


REFUSED = Occasion(
    name="teacher_refused",
    kind="teacher_refused",
    title="The teacher refuses our calls",
    text="Its key, the model's name or the account. Nothing is labelled until it is repaired.",
    page="/#teacher",
    over="The teacher answers again.",
)
