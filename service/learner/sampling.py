"""The draws in force, and how they are kept within their shares of the label budget."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from math import inf
from threading import Lock

from pipelines.rates import (
    DAY,
    LEAST_RATE,
    PURSES,
    DayBudget,
    Lately,
    Wishes,
    next_policy,
)
from pipelines.sample import SamplingPolicy
from pipelines.types import Task
from service.purses import day_budget, midnight
from service.rules import wanted_in_cold_start
from service.settings import Settings
from storage.database import Cursor, Database
from storage.decisions import chain
from storage.labels import LabelCounts, bought_by_purse
from storage.pool import count_disagreements
from storage.samples import count_pending
from storage.traffic import first_minute, window_sums


class Sampling:
    """The sampling policies in force, by task. Replaced as a whole by the watch job.

    Between two of its looks a log of years may be imported, so what is bought for the held-out
    draw is counted here too: at one rate at most half of what its purse still pays for is drawn,
    then it is half the rate.
    """

    def __init__(self, policies: Mapping[str, SamplingPolicy], held_out_left: float = inf) -> None:
        self._policies = dict(policies)
        self._left = dict.fromkeys(policies, held_out_left)
        self._at_half = dict.fromkeys(policies, held_out_left / 2)
        self._lock = Lock()

    def policy(self, task: str) -> SamplingPolicy:
        with self._lock:
            return self._policies[task]

    def replace(self, task: str, policy: SamplingPolicy, held_out_left: float = inf) -> None:
        """`held_out_left`: labels that the purse of the held-out draw still pays for today."""
        with self._lock:
            self._policies[task] = policy
            self._left[task], self._at_half[task] = held_out_left, held_out_left / 2

    def buys_held_out(self, task: str) -> SamplingPolicy:
        """Count one held-out item whose label has to be bought. The draws from now on."""
        with self._lock:
            self._left[task] -= 1
            if self._left[task] < self._at_half[task]:
                self._at_half[task] = self._left[task] / 2
                policy = self._policies[task]
                halved = max(LEAST_RATE, policy.held_out_rate / 2)
                self._policies[task] = replace(policy, held_out_rate=halved)
            return self._policies[task]


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

    def adjust(self, task: str, counts: LabelCounts, *, shifted: bool) -> None:
        """Set the rates so that the draws stay within their shares of the label budget.

        `shifted`: less is trusted of the champion than was approved, and a successor is wanted.
        """
        now = self._now()
        with self._database.snapshot() as tx:
            budget = day_budget(tx, self._settings.budget, now, tasks=len(self._tasks))
            lately = _lately(tx, task, now)
            wishes = self._wishes(tx, task, counts, now, budget, shifted)
        policy = next_policy(self._sampling.policy(task), budget, lately, wishes)
        self._sampling.replace(task, policy, wishes.held_out_left)

    def _wishes(
        self,
        tx: Cursor,
        task: str,
        counts: LabelCounts,
        now: datetime,
        budget: DayBudget,
        shifted: bool,
    ) -> Wishes:
        settings = self._settings.sampling
        pending = count_pending(tx, task)
        today = midnight(now)
        bought = bought_by_purse(tx, task, today)
        awaited, had = count_disagreements(tx, task, today)
        return Wishes(
            shifted=shifted,
            held_out_left=budget.purses()["held_out"]
            - bought["held_out"]
            - awaited
            - pending["held_out"],
            disagreements=awaited + had,
            pool_lasts=self._settings.retention.unlabelled_samples,
            audit_rate=settings.audit_rate,
            learning_pi_min=settings.learning_pi_min,
            held_out_window=self._settings.dataset.held_out_window,
            held_out_groups=counts.held_out_groups,
            full=pending.total() >= settings.max_pending,
            cold_start=counts.training < wanted_in_cold_start(self._settings, self._tasks[task]),
            learning_spent=bought["learning"],
            day_gone=(now - today) / DAY,
        )


def first_purse(settings: Settings) -> float:
    """Held-out labels of a task's first day, before anything is known of their price."""
    return PURSES["held_out"] * settings.budget.label_calls / max(1, len(settings.tasks))


def _lately(tx: Cursor, task: str, now: datetime) -> Lately:
    """The traffic of the last day, and of the present champion's part of it."""
    until = now + timedelta(minutes=1)
    since = max(now - DAY, first_minute(tx, task, now - DAY) or now)
    events = window_sums(tx, task, None, since, until).events
    reigns = chain(tx, task).reigns
    if not reigns:
        return Lately(events=events, window=now - since)
    own = window_sums(tx, task, None, max(since, reigns[-1].decided_at), until)
    return Lately(
        events=events,
        window=now - since,
        answered=own.served + own.teacher_served,
        served=own.served,
        has_champion=True,
    )
