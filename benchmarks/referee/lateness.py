"""The labels of audits: do they come in time when traffic is heavy and the budget is not?"""

from collections.abc import Iterator
from datetime import timedelta

import numpy as np

from benchmarks.referee.figures import Figure, tries, waits
from pipelines.rates import DAY, DayBudget, Lately, Wishes, next_policy
from pipelines.sample import SamplingPolicy
from service.sections import (
    BudgetSettings,
    DatasetSettings,
    RetentionSettings,
    SamplingSettings,
)

EVENTS_A_SECOND = 40
SERVED = 0.6
DAYS = 4  # after the promotion
SWING = 0.8  # of the traffic between day and night
TICK = timedelta(seconds=60)
RELABEL_MINUTES = 5 / 60  # between two ticks of the job that asks the teacher


def first_policy() -> SamplingPolicy:
    """What the settings say, before there is traffic to go by."""
    sampling = SamplingSettings()
    return SamplingPolicy(
        salt=b"salt",
        audit_rate=sampling.audit_rate,
        held_out_rate=sampling.held_out_rate,
        given_rate=sampling.given_rate,
        learning_scale=1.0,
        learning_pi_min=sampling.learning_pi_min,
        cold_start_rate=sampling.cold_start_rate,
        cold_start=False,
    )


def day_budget() -> DayBudget:
    """The default ceilings, with nothing known of what a label costs."""
    budget = BudgetSettings()
    return DayBudget(calls=budget.label_calls, tokens=budget.label_tokens, money=budget.label_money)


def wishes(held_out_groups: int = 0) -> Wishes:
    """Of a task with default settings and labels enough not to be choosy."""
    sampling = SamplingSettings()
    return Wishes(
        audit_rate=sampling.audit_rate,
        learning_pi_min=sampling.learning_pi_min,
        held_out_window=DatasetSettings().held_out_window,
        held_out_groups=held_out_groups,
        full=False,
        cold_start=False,
        shifted=False,
        held_out_left=day_budget().purses()["held_out"],
        disagreements=0.0,
        pool_lasts=RetentionSettings().unlabelled_samples,
        learning_spent=0.0,
        day_gone=0.0,
    )


def audit_minutes_late_40_a_second(count: int, seed: int) -> Iterator[Figure]:
    """The first days of a champion after a month in which the teacher answered everything."""
    name = "audit_minutes_late_40_a_second"

    def one(generator: np.random.Generator) -> float:
        return float(np.quantile(minutes_late(generator), 0.99))

    world = (
        f"{EVENTS_A_SECOND} events a second, more by day and less by night, at default budgets, "
        f"the {DAYS} days after a promotion that followed long pass-through: so late is the label "
        "of an audit that the student served, of the last one in a hundred; the teacher answers "
        "at once."
    )
    yield waits(name, list(tries(name, count, (seed, 90), one)), world, unit="minutes")


def minutes_late(generator: np.random.Generator) -> list[float]:
    """Of each audit of a served answer, until its purse paid for it or the days were over.

    The rates are the product's, anew every minute; a purse is full again at midnight, and what
    it does not pay for waits in the order in which it came.
    """
    day, total = DAY // TICK, (DAYS + 1) * (DAY // TICK)
    clock = np.arange(total) + generator.integers(day)
    traffic = generator.poisson(
        EVENTS_A_SECOND * 60 * (1.0 + SWING * np.sin(2 * np.pi * clock / day))
    )
    seen, budget, policy = np.concatenate([[0], traffic.cumsum()]), day_budget(), first_policy()
    waiting, late, bought = list[int](), list[float](), 0
    for minute in range(day, total):
        if clock[minute] % day == 0:
            bought = 0
        answered = int(seen[minute] - seen[max(day, minute - day)])
        lately = Lately(
            events=int(seen[minute] - seen[minute - day]),
            window=DAY,
            answered=answered,
            served=round(SERVED * answered),
            has_champion=True,
        )
        policy = next_policy(policy, budget, lately, wishes())
        waiting += [minute] * generator.poisson(traffic[minute] * SERVED * policy.audit_rate)
        paid = waiting[: max(0, round(budget.purses()["audit"]) - bought)]
        late += [minute - arrived + generator.random() * RELABEL_MINUTES for arrived in paid]
        waiting, bought = waiting[len(paid) :], bought + len(paid)
    return [*late, *(float(total - arrived) for arrived in waiting)]
