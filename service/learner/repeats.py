"""Asking again: the teacher about the same question, to see how far it agrees with itself."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Event

from pipelines.ask import Question, ask
from pipelines.errors import TeacherRefused
from pipelines.identities import prompt_version
from pipelines.label import read_label
from pipelines.rates import DAY
from pipelines.types import Task
from service.learner.teacher import Reply, Teacher
from service.purses import ASKED_TWICE, left_in_purses
from service.sections import BudgetSettings
from storage.database import Database
from storage.ledger import Ledger
from storage.ticks import JobResult
from storage.votes import (
    BLIND,
    SECOND,
    Repeatable,
    add_votes,
    asked_blindly,
    audits_to_ask,
    doubted,
    held_out_to_ask,
)

OF_AUDITS = 0.02  # of the audits after that
BATCH = 32
RESTS = timedelta(minutes=10)  # a job that has not run for so long is not waited for


class Repeats:
    """The one exception to "an answer is never bought again", with a purse of its own.

    Held-out items and audits are asked about again whatever anybody answered: that measures the
    teacher. What is left in the purse asks about training labels that a student doubts.
    """

    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        teacher: Teacher,
        tasks: Mapping[str, Task],
        budget: BudgetSettings,
        now: Callable[[], datetime],
        stop: Event,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._teacher = teacher
        self._tasks = tasks
        self._budget = budget
        self._now = now
        self._stop = stop
        self._in_vain: set[str] = set()  # tasks whose last questions brought no answer
        self._ran_at: datetime | None = None

    def run(self) -> JobResult:
        """One tick, after that of the relabel job: calls of the teacher come one job at a time."""
        self._ran_at = self._now()
        if self._teacher.why_not() or self._stop.is_set():
            return JobResult("nothing", "nothing was asked again")
        outcomes: Counter[str] = Counter()
        for task in self._tasks.values():
            outcomes.update(self._blindly(task))
            outcomes.update(self._doubted(task))
        if not outcomes["same"] and not outcomes["other"]:
            return JobResult("nothing", "nothing is to be asked again")
        return JobResult(
            "done",
            f"asked again {outcomes.total()} times, and {outcomes['other']} times the teacher gave "
            "another answer",
        )

    def waiting(self, name: str) -> int:
        """How many questions are asked again, as soon as may be, before a first student is judged.

        None that cannot be asked now: no student waits for a teacher that is gone, or for a job
        that is paused.
        """
        rests = self._ran_at is None or self._now() - self._ran_at > RESTS
        if rests or name in self._in_vain or self._teacher.why_not():
            return 0
        left = self._left()
        return min(left, len(self._first(self._tasks[name]))) if left else 0

    def _blindly(self, task: Task) -> Counter[str]:
        left = self._left()
        if not left:
            return Counter()
        chosen = self._first(task)
        if not chosen:
            with self._database.snapshot() as tx:
                chosen = audits_to_ask(
                    tx,
                    task.name,
                    prompt_version(task),
                    since=self._now() - DAY,
                    share=OF_AUDITS,
                    limit=left,
                )
        return self._ask(task, chosen, BLIND)

    def _first(self, task: Task) -> list[Repeatable]:
        """Held-out items to be asked about again until there are a hundred.

        A call whose outcome nobody knows waits for an operator, and holds up no other.
        """
        version = prompt_version(task)
        with self._database.snapshot() as tx:
            lacking = ASKED_TWICE - asked_blindly(tx, task.name, version)
            if lacking <= 0:
                return []
            found = held_out_to_ask(tx, task.name, version, ASKED_TWICE + lacking)
        replies = [self._teacher.known(self._question(task, one, BLIND)) for one in found]
        known = zip(found, replies, strict=True)
        return [one for one, said in known if said is None or said.outcome != "unknown"][:lacking]

    def _question(self, task: Task, one: Repeatable, repeat: int) -> Question:
        policy = self._teacher.policy
        return ask(one.event_id, one.messages, task, policy, repeat, asked=one.asked)

    def _doubted(self, task: Task) -> Counter[str]:
        left = self._left()
        if not left:
            return Counter()
        with self._database.snapshot() as tx:
            found = doubted(tx, task.name, min(left, BATCH))
        return self._ask(task, found, SECOND)

    def _left(self) -> int:
        with self._database.snapshot() as tx:
            return left_in_purses(tx, self._ledger, self._budget, self._now())["repeat"]

    def _ask(self, task: Task, chosen: Sequence[Repeatable], repeat: int) -> Counter[str]:
        """Asked and stored in batches. Counts the answers: the same, another, or none."""
        outcomes: Counter[str] = Counter()
        for batch in _batches(chosen[: self._left()]):
            if self._stop.is_set():
                break
            replies = self._teacher.answer([self._question(task, one, repeat) for one in batch])
            found = self._apply(task, batch, replies)
            outcomes.update(found)
            if not found["same"] + found["other"]:  # of no use now: the same would come again
                self._in_vain.add(task.name)
                break
            self._in_vain.discard(task.name)
        return outcomes

    def _apply(
        self, task: Task, batch: Sequence[Repeatable], replies: Sequence[Reply]
    ) -> Counter[str]:
        votes = [
            reply.as_vote(one.first, read_label(reply.text, task), prompt_version(task))
            for one, reply in zip(batch, replies, strict=True)
            if reply.outcome in ("received", "impossible")  # a refusal is no label either
        ]
        with self._database.transaction() as tx:
            add_votes(tx, task.name, votes, self._now())
        for reply in replies:
            if reply.outcome == "refused":
                raise TeacherRefused(reply.detail)
        same = sum(vote.label == vote.first for vote in votes)
        return Counter(same=same, other=len(votes) - same, none=len(batch) - len(votes))


def _batches(items: Sequence[Repeatable]) -> Iterator[Sequence[Repeatable]]:
    for begin in range(0, len(items), BATCH):
        yield items[begin : begin + BATCH]
