"""The scheduled jobs: what each does at a tick, and how one asks for another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pipelines.errors import TrainingFailed
from pipelines.types import StudentVersion
from service.host.memory import tidy
from service.learner.evaluation import Evaluating
from service.learner.leases import LeaseBook
from service.learner.regression import Regression
from service.learner.relabel import Relabel
from service.learner.repeats import Repeats
from service.learner.retention import Retention
from service.learner.schedule import Schedule
from service.learner.teacher import Teacher
from service.learner.training import Training
from service.learner.watch import Watch
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.operations import Operations
from service.settings import Settings
from storage.database import Database
from storage.ticks import JobResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Whose work the jobs call for."""

    training: Training
    evaluating: Evaluating
    relabel: Relabel
    repeats: Repeats
    regression: Regression
    retention: Retention
    operations: Operations
    leases: LeaseBook
    teacher: Teacher


class Jobs:
    """Fires the jobs on their schedules, and the training also when the watch says so."""

    def __init__(
        self,
        parts: Parts,
        make_watch: Callable[[Callable[[str, str], None]], Watch],
        *,
        settings: Settings,
        database: Database,
        metrics: LearnerMetrics,
        board: Board,
        now: Callable[[], datetime],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._metrics = metrics
        self._board = board
        self._watch = make_watch(self.train_soon)
        self._due: dict[str, str] = {}  # why, by task
        when = settings.schedule
        self._schedule = Schedule(
            {
                "relabel": (when.relabel, self.label),
                "train": (when.train, self.train),
                "evaluate": (when.evaluate, self.evaluate),
                "watch": (when.watch, self.look),
                "retention": (when.retention, self.tidy),
            },
            database,
            metrics,
            board,
            now,
        )
        self.start, self.stop = self._schedule.start, self._schedule.stop

    def label(self) -> JobResult:
        """New labels first; then what was answered already is asked again."""
        found = [self._parts.relabel.run(), self._parts.repeats.run()]
        done = [result for result in found if result.outcome == "done"] or found[:1]
        return JobResult(done[0].outcome, "; ".join(result.detail for result in done))

    def look_now(self) -> None:
        """The watch sets the rates of the draws by the traffic of before: not seconds later."""
        self._schedule.run_now("watch")

    def train_soon(self, task: str, reason: str) -> None:
        """Fire the training at once, for this task."""
        self._due[task] = reason
        self._schedule.run_now("train")

    def train(self) -> JobResult:
        """What a trigger asked for; on its own schedule, every task."""
        due = {task: self._due.pop(task) for task in list(self._due)}
        reasons: Mapping[str, str] = due or dict.fromkeys(self._settings.tasks, "the schedule")
        details, done = [], False
        self._metrics.training_running.set(1)
        try:
            for task, reason in reasons.items():
                result, version = self._parts.training.run(task, reason)
                details.append(result.detail)
                if version is not None:
                    done = True
                    details.append(self._parts.evaluating.run(task).detail)
                    details += self._challenge(version)
        finally:
            self._metrics.training_running.set(0)
            self._parts.operations.note_change()
        return JobResult("done" if done else "nothing", "; ".join(details) or "there are no tasks")

    def evaluate(self) -> JobResult:
        results = [self._parts.evaluating.run(task) for task in self._settings.tasks]
        done = any(result.outcome == "done" for result in results)
        if done:
            self._parts.operations.note_change()
        details = "; ".join(result.detail for result in results)
        return JobResult("done" if done else "nothing", details or "there are no tasks")

    def look(self) -> JobResult:
        """The watch, and what follows from it: a rollback by itself, and numbers to alert on."""
        operations, metrics = self._parts.operations, self._metrics
        result = self._watch.run()
        operations.settle()  # also publishes what the watch guards
        metrics.teacher_breaker_open.set(self._parts.teacher.breaker_open)
        for name in self._settings.tasks:
            self._roll_back(name, self._parts.regression.look(name))
            waiting = sum(version.state == "waiting" for version in operations.versions(name))
            metrics.versions_waiting.labels(task=name).set(waiting)
        spent = self._parts.leases.spent()
        metrics.escalation_spend.labels(kind="calls").set(spent.calls)
        metrics.escalation_spend.labels(kind="money").set(spent.money)
        operations.note_change()
        tidy()
        return result

    def tidy(self) -> JobResult:
        """Old things go; what is served is read, before somebody needs it and it is damaged."""
        self.check_champions()
        return self._parts.retention.run()

    def check_champions(self) -> None:
        damaged = self._parts.operations.damaged_champions()
        for task in self._settings.tasks:
            self._metrics.champion_damaged.labels(task=task).set(task in damaged)

    def _challenge(self, version: StudentVersion) -> list[str]:
        """The task's second recipe on the same labels, where it has one."""
        if self._settings.tasks[version.task].challenger is None:
            return []
        self._parts.operations.note_change()
        try:
            result, challenger = self._parts.training.challenge(version)
        except TrainingFailed as error:  # the version that it would challenge stands
            return [f"the challenger failed: {error}"]
        if challenger is None:
            return [result.detail]
        return [result.detail, self._parts.evaluating.run(version.task).detail]

    def _roll_back(self, task: str, reason: str | None) -> None:
        """Pages by its log line, its metric and its notification, whoever has to look then."""
        if reason is not None and self._settings.rollback.automatic:
            self._parts.operations.automatic_rollback(task, reason)
