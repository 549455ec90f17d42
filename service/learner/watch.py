"""The watch job: it looks at each task, keeps the draws affordable, and asks for trainings."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from pipelines.trigger import Due
from pipelines.types import Task
from service.learner.ceiling import with_teacher
from service.learner.due import Trigger
from service.learner.estimates import Estimates, set_bounds
from service.learner.guarding import Guarding
from service.learner.sampling import Rates, Sampling
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.status import Figures
from service.settings import Settings
from storage.artifacts import Artifacts
from storage.database import Database
from storage.dead_letters import count_dead_letters
from storage.ledger import Ledger
from storage.ticks import JobResult


class Watch:
    """Every few seconds. What it saw last is on the board."""

    def __init__(
        self,
        *,
        database: Database,
        artifacts: Artifacts,
        ledger: Ledger,
        settings: Settings,
        tasks: Mapping[str, Task],
        sampling: Sampling,
        metrics: LearnerMetrics,
        board: Board,
        start_training: Callable[[str, str], None],
        to_ask_again: Callable[[str], int] = lambda task: 0,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._settings = settings
        self._tasks = tasks
        self._metrics = metrics
        self._board = board
        self._start_training = start_training
        self._to_ask_again = to_ask_again
        self._now = now
        self._estimates = Estimates(
            database=database, settings=settings, metrics=metrics, live=board.live_task, now=now
        )
        self._guarding = Guarding(
            database=database,
            artifacts=artifacts,
            settings=settings,
            live=board.live_task,
            metrics=metrics,
            now=now,
        )
        self._rates = Rates(database, settings, tasks, sampling, now)
        self._trigger = Trigger(database, settings, now)

    def run(self) -> JobResult:
        """One tick over all tasks."""
        reasons = []
        for name in self._tasks:
            figures, counts = self._estimates.look(name)
            guards = self._guarding.look(name)
            now = self._now()
            shifted = any(guard.is_shift(now) for guard in guards)
            with self._database.snapshot() as tx:
                figures = with_teacher(tx, self._tasks[name], figures)
            figures = replace(figures, guards=guards, shifted=shifted)
            self._show_teacher(name, figures)
            self._board.show(name, figures)
            self._rates.adjust(name, counts, shifted=shifted)
            due = self._trigger.due(
                name,
                figures,
                counts,
                asked=self._board.take_wish(name),
                to_ask_again=self._to_ask_again(name),
            )
            self._board.show(name, replace(figures, trigger=due.reason))
            if isinstance(due, Due):
                self._start_training(name, due.reason)
            reasons.append(f"{name}: {due.reason}")
        self._measure()
        return JobResult("done", " ".join(reasons) or "there are no tasks")

    def _show_teacher(self, task: str, figures: Figures) -> None:
        set_bounds(self._metrics.teacher_self_agreement, figures.ceiling, task=task)
        self._metrics.labels_parked.labels(task=task).set(figures.parked)

    def _measure(self) -> None:
        metrics, budget = self._metrics, self._settings.budget
        spent = self._ledger.spent_on(self._now())
        for kind, used, limit in (
            ("calls", spent.calls, budget.label_calls),
            ("tokens", spent.tokens, budget.label_tokens),
            ("money", spent.money, budget.label_money),
        ):
            metrics.label_spend.labels(kind=kind).set(used)
            metrics.label_budget.labels(kind=kind).set(limit)
        metrics.escalation_budget.labels(kind="calls").set(budget.escalation_calls)
        metrics.escalation_budget.labels(kind="money").set(budget.escalation_money)
        metrics.unknown_outcomes.set(len(self._ledger.unknown()))
        metrics.disk_free_bytes.set(shutil.disk_usage(self._settings.data_dir).free)
        with self._database.snapshot() as tx:
            metrics.dead_letters.set(count_dead_letters(tx))
