"""The relabel job: pending samples to the teacher, its answers to labels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Event

import structlog

from pipelines.ask import ask
from pipelines.errors import TeacherRefused
from pipelines.identities import prompt_version
from pipelines.label import OUTSIDE, read_label
from pipelines.shape import shape, shape_in_words
from pipelines.types import Label, Task
from service.learner.teacher import Reply, Teacher
from service.learner.unusable import UnusableAnswers
from service.metrics.learner import LearnerMetrics
from service.purses import left_in_purses
from service.sections import BudgetSettings
from storage.database import Database
from storage.failpoints import passing
from storage.labels import add_labels
from storage.ledger import Ledger
from storage.samples import PendingSample, count_by_status, pending_samples, set_status
from storage.shapes import ShapeKey, add_shapes
from storage.ticks import JobResult

log = structlog.get_logger()

BATCH = 64
BATCHES_PER_TICK = 16
PURSES_ARE_EMPTY = (
    "their shares of today's label budget are spent (a fifth is for audits, a fifth for held-out "
    "items, a twentieth for asking again, the rest for training data)"
)


class Relabel:
    """Asks the teacher about pending samples, evidence first, within the budget."""

    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        teacher: Teacher,
        tasks: Mapping[str, Task],
        terms: str,
        budget: BudgetSettings,
        metrics: LearnerMetrics,
        unusable: UnusableAnswers,
        now: Callable[[], datetime],
        stop: Event,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._teacher = teacher
        self._tasks = tasks
        self._terms = terms
        self._budget = budget
        self._metrics = metrics
        self._unusable = unusable
        self._now = now
        self._stop = stop

    def run(self) -> JobResult:
        """One tick. Everything received is applied before the next batch is asked."""
        # Ticks come one at a time: what is under way now was left behind by a full disk.
        self._teacher.recover()
        if why := self._teacher.why_not():
            return JobResult("nothing", f"no label was bought: {why}")
        outcomes: Counter[str] = Counter()
        for _ in range(BATCHES_PER_TICK):
            pending = self._payable()
            if not pending or self._stop.is_set():
                break
            done = self._label(pending)
            outcomes.update(done)
            if done["not_sent"] or done["over_budget"]:
                break  # the same samples would come again
        resting = [task for task in self._tasks if self._unusable.rest(task)]
        if not outcomes and resting:
            why = "again and again the teacher's answers were no label"
            return JobResult("nothing", f"nothing is bought for {', '.join(resting)}: {why}")
        if not outcomes and (waiting := self._waiting()):
            return JobResult("nothing", f"{waiting} samples wait: {PURSES_ARE_EMPTY}")
        return _summary(outcomes)

    def _payable(self) -> list[PendingSample]:
        """The next samples whose purse still pays today."""
        with self._database.snapshot() as tx:
            left = left_in_purses(tx, self._ledger, self._budget, self._now())
            tasks = [task for task in self._tasks if not self._unusable.rest(task)]
            return self._unusable.few(pending_samples(tx, tasks, BATCH, left))

    def _waiting(self) -> int:
        with self._database.snapshot() as tx:
            counts = count_by_status(tx)
        return sum(counts.get((task, "pending"), 0) for task in self._tasks)

    def recover(self) -> None:
        """After a crash: what was in flight is held; what was received lies in the ledger, and
        the next tick applies it without paying."""
        held = self._teacher.recover()
        if held:
            log.warning("teacher_calls_unknown", calls=held)
        with self._database.transaction() as tx:
            set_status(tx, [call.event_id for call in self._ledger.unknown()], "held")

    def _label(self, pending: Sequence[PendingSample]) -> Counter[str]:
        questions = [
            ask(
                sample.event_id,
                sample.messages,
                self._tasks[sample.task],
                self._teacher.policy,
                asked=sample.asked,
            )
            for sample in pending
        ]
        # When this raises, what was received until then is in the ledger for the next tick.
        replies = self._teacher.answer(questions)
        done = self._apply(replies)
        for reply in replies:
            if reply.outcome == "refused":
                raise TeacherRefused(reply.detail)
        return done

    def _apply(self, replies: Sequence[Reply]) -> Counter[str]:
        labels: dict[str, list[Label]] = {}
        failed: dict[str, list[str]] = {}
        held = []
        # Where no prompt at all is answered, none of them is to blame for it.
        refused = any(reply.outcome == "refused" for reply in replies)
        shapes: dict[str, list[str]] = {}
        looks: Counter[ShapeKey] = Counter()
        for reply in replies:
            event_id, asked = reply.question.event_id, self._tasks[reply.question.task]
            label = read_label(reply.text, asked)
            if reply.outcome == "received" and label is not None:
                version = prompt_version(asked)
                made = reply.as_label(label, prompt_version=version, terms=self._terms)
                labels.setdefault(asked.name, []).append(made)
                looks[self._now().date(), asked.name, shape(reply.text or "")] += 1
            elif reply.outcome == "received":
                failed.setdefault(reply.detail or OUTSIDE, []).append(event_id)
                looked = reply.detail or shape_in_words(reply.text)
                shapes.setdefault(asked.name, []).append(looked)
            elif reply.outcome == "impossible" and not refused:
                failed.setdefault(reply.detail, []).append(event_id)
            elif reply.outcome == "unknown":
                held.append(event_id)
        with self._database.transaction() as tx:
            for task, found in labels.items():
                add_labels(tx, task, found, self._now())
            add_shapes(tx, looks)
            for why, event_ids in failed.items():
                set_status(tx, event_ids, "failed", why)
            set_status(tx, held, "held", "nobody knows whether the teacher answered")
        for task, found in labels.items():
            self._metrics.labels.labels(task=task, source="bought").inc(len(found))
        for task in {*labels, *shapes}:
            found_none = shapes.get(task, [])
            self._unusable.note(task, found_none, useful=len(labels.get(task, [])))
            self._metrics.unusable_answers.labels(task=task).inc(len(found_none))
        passing("relabel.applied")
        counts: Counter[str] = Counter(reply.outcome for reply in replies)
        counts["outside"] = sum(map(len, shapes.values()))
        return counts


def _summary(outcomes: Counter[str]) -> JobResult:
    if not outcomes:
        return JobResult("nothing", "no sample waits for the teacher")
    parts = [f"{outcomes['received'] - outcomes['outside']} labels"]
    for name, phrase in (
        ("outside", "answers that are no label"),
        ("unknown", "calls with an unknown outcome"),
        ("impossible", "prompts that the teacher cannot answer"),
        ("not_sent", "not sent, to be tried again"),
        ("over_budget", "over today's label budget"),
    ):
        if outcomes[name]:
            parts.append(f"{outcomes[name]} {phrase}")
    return JobResult("done" if outcomes["received"] else "nothing", ", ".join(parts))
