"""The draws in force, and how they are kept within their shares of the label budget."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from threading import Lock

from pipelines.sample import SamplingPolicy, next_learning_scale
from pipelines.types import Task
from service.operator.status import Figures
from service.rules import wanted_in_cold_start
from service.settings import Settings
from storage.database import Database
from storage.labels import LabelCounts, bought_for_learning
from storage.samples import count_by_status

# Shares of the label budget that the uniform draws may use; the learning draw has the rest.
AUDIT_SHARE, HELD_OUT_SHARE = 0.2, 0.2
LEARNING_SHARE = 1.0 - AUDIT_SHARE - HELD_OUT_SHARE


class Sampling:
    """The sampling policies in force, by task. Replaced as a whole by the watch job."""

    def __init__(self, policies: Mapping[str, SamplingPolicy]) -> None:
        self._policies = dict(policies)
        self._lock = Lock()

    def policy(self, task: str) -> SamplingPolicy:
        with self._lock:
            return self._policies[task]

    def replace(self, task: str, policy: SamplingPolicy) -> None:
        with self._lock:
            self._policies[task] = policy


class Rates:
    """Replaces a task's sampling policy as labels are bought and traffic changes."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        tasks: Mapping[str, Task],
        sampling: Sampling,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._settings = settings
        self._tasks = tasks
        self._sampling = sampling
        self._now = now

    def adjust(self, task: str, figures: Figures, counts: LabelCounts) -> None:
        """Set the rates so that the draws stay within their shares of the label budget."""
        settings = self._settings.sampling
        policy = self._sampling.policy(task)
        now = self._now()
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        budget = self._settings.budget.label_calls / max(1, len(self._tasks))
        with self._database.snapshot() as tx:
            spent = bought_for_learning(tx, task, today)
            pending = count_by_status(tx).get((task, "pending"), 0)
        bought_per_day = _bought_per_day(figures)
        full = pending >= settings.max_pending
        wanted = wanted_in_cold_start(self._settings, self._tasks[task])
        self._sampling.replace(
            task,
            replace(
                policy,
                audit_rate=_affordable(settings.audit_rate, AUDIT_SHARE * budget, bought_per_day),
                # One event in five belongs to a held-out group.
                held_out_rate=_affordable(
                    settings.held_out_rate, HELD_OUT_SHARE * budget, bought_per_day / 5
                ),
                learning_scale=policy.learning_scale
                if full
                else next_learning_scale(
                    policy.learning_scale,
                    spent=spent,
                    due=budget * LEARNING_SHARE * (now - today).total_seconds() / 86_400,
                    budget=budget * LEARNING_SHARE,
                ),
                cold_start=counts.training < wanted,
                full=full,
            ),
        )


def _bought_per_day(figures: Figures) -> float:
    """Events a day whose label would have to be bought: those the teacher did not answer."""
    share = figures.served_by_student_share
    events = figures.events_per_day or 0.0
    return events if share is None else events * share


def _affordable(rate: float, calls_a_day: float, events_a_day: float) -> float:
    """The rate, halved until it is affordable.

    In coarse steps, because items drawn at different rates have to be thinned to the lowest.
    """
    while events_a_day * rate > max(calls_a_day, 1.0):
        rate /= 2
    return rate
