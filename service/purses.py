"""What the shares of today's label budget still pay for, and which of them keep samples waiting."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from math import ceil, floor, log10
from typing import NamedTuple

from pipelines.identities import prompt_version
from pipelines.rates import PURSES, DayBudget, Purse, purse_of
from pipelines.types import Task
from service.sections import BudgetSettings
from service.settings import Settings
from storage.database import Cursor
from storage.labels import bought_by_purse, mean_bought
from storage.ledger import Ledger
from storage.samples import count_pending
from storage.votes import asked_blindly, held_out_to_ask, votes_since

PRICED_OVER = timedelta(days=7)  # what a label costs is the average of so long
ASKED_TWICE = 100  # held-out items, before a first student is judged


class Emptied(NamedTuple):
    """A purse that pays for nothing more today, with what waits for it."""

    purse: Purse
    waiting: int
    # Settings of [budget] that are too low for what was bought and waits, and what would do.
    enough: Mapping[str, float]


def day_budget(tx: Cursor, budget: BudgetSettings, now: datetime, *, tasks: int) -> DayBudget:
    """One task's part of a day's budget: what the settings grant to all is divided evenly."""
    tokens, money = mean_bought(tx, now - PRICED_OVER)
    return DayBudget(
        calls=budget.label_calls / max(1, tasks),
        tokens=budget.label_tokens / max(1, tasks),
        money=budget.label_money / max(1, tasks),
        tokens_of_a_label=tokens,
        money_of_a_label=money,
    )


def left_in_purses(
    tx: Cursor, ledger: Ledger, budget: BudgetSettings, now: datetime
) -> dict[Purse, int]:
    """Labels that each purse still pays for today."""
    spent = _spent(tx, ledger, now)
    purses = day_budget(tx, budget, now, tasks=1).purses()
    return {purse: max(0, round(purses[purse] - spent[purse])) for purse in purses}


def emptied(tx: Cursor, ledger: Ledger, settings: Settings, now: datetime) -> tuple[Emptied, ...]:
    """The purses that are empty while something waits for them; none where nothing is granted."""
    budget, tasks = settings.budget, map(settings.task_of, settings.tasks)
    whole, left = day_budget(tx, budget, now, tasks=1), left_in_purses(tx, ledger, budget, now)
    if all(left.values()) or whole.labels < 1:
        return ()
    spent, waiting = _spent(tx, ledger, now), _waiting(tx, tasks)
    return tuple(
        Emptied(purse, waiting[purse], _enough(whole, (spent[purse] + waiting[purse]) / share))
        for purse, share in PURSES.items()
        if waiting[purse] and not left[purse]
    )


def midnight(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def _spent(tx: Cursor, ledger: Ledger, now: datetime) -> dict[Purse, int]:
    """Calls of today. Those that brought no label count as training data's: evidence does not
    pay for them.
    """
    bought = bought_by_purse(tx, None, midnight(now))
    evidence = bought["audit"] + bought["held_out"]
    again = votes_since(tx, None, midnight(now))
    return {
        "audit": bought["audit"],
        "held_out": bought["held_out"],
        "repeat": again,
        "learning": ledger.spent_on(now).calls - evidence - again,
    }


def _waiting(tx: Cursor, tasks: Iterable[Task]) -> dict[Purse, int]:
    """Samples that wait for the teacher, and what has to be asked a second time."""
    found: dict[Purse, int] = dict.fromkeys(PURSES, 0)
    for task in tasks:
        for reason, count in count_pending(tx, task.name).items():
            found[purse_of(reason)] += count
        version = prompt_version(task)
        lacking = ASKED_TWICE - asked_blindly(tx, task.name, version)
        if lacking > ASKED_TWICE / 10:  # with a few less it is known nearly as well
            found["repeat"] += len(held_out_to_ask(tx, task.name, version, lacking))
    return found


def _enough(whole: DayBudget, labels: float) -> dict[str, float]:
    """Ceilings that a day of so many labels would meet, and how high they would have to be."""
    wanted = {
        "label_calls": (whole.calls, labels),
        "label_tokens": (whole.tokens, labels * whole.tokens_of_a_label),
        "label_money": (whole.money, labels * whole.money_of_a_label),
    }
    return {name: _rounded_up(need) for name, (has, need) in wanted.items() if need > has}


def _rounded_up(value: float) -> float:
    """To two digits: 3,217 to 3,300."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return round(ceil(value / unit - 1e-9) * unit, 6)
