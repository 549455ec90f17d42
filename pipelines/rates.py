"""How often to draw: what each draw's own share of the label budget pays for, given the traffic.

Evidence has purses of its own: audits and held-out items never wait behind training data, and the
learning draw never spends what they need. See statistics.md, section 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from math import floor, log2
from typing import Final, Literal

from pipelines.sample import HELD_OUT_SHARE_OF_GROUPS, SamplingPolicy, next_learning_scale

Purse = Literal["audit", "held_out", "repeat", "learning"]

# Of the calls that a day's label budget pays for. `repeat`: the same question again, which tells
# how far the teacher agrees with itself.
PURSES: Final[Mapping[Purse, float]] = {
    "audit": 0.2,
    "held_out": 0.2,
    "repeat": 0.05,
    "learning": 0.55,
}
EVIDENCE: Final[Mapping[str, Purse]] = {
    "audit": "audit",
    "held_out": "held_out",
    "disagreement": "held_out",
}
# Of the held-out purse, which the labels where two students differ come out of too: what they may
# take of it before the draw has to do with less.
MOST_FOR_DISAGREEMENTS = 0.5
LEAST_RATE = 2.0**-24
# A rate rises only where this share of its purse would pay for it: traffic is never quite even.
USED_OF_A_PURSE = 0.8
# So many answers show what share of the traffic the student serves; before that it is all of it.
ENOUGH_ANSWERED = 200
SHORTEST_WINDOW = timedelta(minutes=10)
SHIFT_LASTS = timedelta(hours=1)  # within which what is left of a day may be spent after a shift
DAY = timedelta(days=1)


def purse_of(reason: str) -> Purse:
    """Who pays for the label of a sample that was chosen for this reason."""
    return EVIDENCE.get(reason, "learning")


@dataclass(frozen=True, slots=True, kw_only=True)
class DayBudget:
    """Ceilings of one day, and what a label takes of them on average; 0 where that is unknown."""

    calls: float
    tokens: float
    money: float
    tokens_of_a_label: float = 0.0
    money_of_a_label: float = 0.0

    @property
    def labels(self) -> float:
        """How many labels the day pays for: the ceiling that is met first."""
        ceilings = [self.calls]
        if self.tokens_of_a_label > 0:
            ceilings.append(self.tokens / self.tokens_of_a_label)
        if self.money_of_a_label > 0:
            ceilings.append(self.money / self.money_of_a_label)
        return min(ceilings)

    def purses(self) -> dict[Purse, float]:
        """Labels a day, for each purse."""
        return {purse: share * self.labels for purse, share in PURSES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lately:
    """A task's traffic over at most the last day."""

    events: int
    window: timedelta  # that the events took
    answered: int = 0  # since the champion was promoted, within the window
    served: int = 0  # of these by the student: their labels would have to be bought
    has_champion: bool = False

    @property
    def events_per_day(self) -> float:
        return self.events * (DAY / max(self.window, SHORTEST_WINDOW))

    @property
    def bought_per_day(self) -> float:
        """Events a day whose label does not come by itself.

        Of the last day and of this champion only: what the teacher answered before its promotion
        says nothing about what it will answer from now on.
        """
        known = self.has_champion and self.answered >= ENOUGH_ANSWERED
        return self.events_per_day * (self.served / self.answered if known else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the settings say about the draws, and how much evidence there is."""

    audit_rate: float  # before there is traffic to go by
    learning_pi_min: float
    held_out_window: int  # groups that judge; more are not looked at
    held_out_groups: int  # that there are
    full: bool  # enough samples wait already
    cold_start: bool
    shifted: bool  # the traffic is another one: the champion is guarded, its successor is wanted
    held_out_left: float  # labels that the purse still pays for today
    disagreements: float  # of that purse, today: labels where two students differ, had or awaited
    pool_lasts: timedelta  # how long an event is kept without a label
    learning_spent: float  # labels, today
    day_gone: float  # share of today that is over


def affordable_rate(labels: float, events: float, present: float) -> float:
    """The largest power of two, at most 1, at which `events` draw no more than `labels` pay for.

    In coarse steps, and none upwards for a little, because items that were drawn at different
    rates have to be thinned or weighted.
    """
    highest = _largest(labels, events)
    if present < highest:
        return max(present, _largest(USED_OF_A_PURSE * labels, events))
    return highest


def _largest(labels: float, events: float) -> float:
    if events <= labels:
        return 1.0
    return max(LEAST_RATE, 2.0 ** floor(log2(labels / events))) if labels > 0 else LEAST_RATE


def next_policy(
    policy: SamplingPolicy, budget: DayBudget, lately: Lately, wishes: Wishes
) -> SamplingPolicy:
    """The draws from now on."""
    purses = budget.purses()
    on_held_out_side = lately.events_per_day * HELD_OUT_SHARE_OF_GROUPS
    enough = wishes.held_out_groups >= wishes.held_out_window and not wishes.shifted
    bought = lately.bought_per_day * HELD_OUT_SHARE_OF_GROUPS
    reserved = min(wishes.disagreements, MOST_FOR_DISAGREEMENTS * purses["held_out"])
    held_out = purses["held_out"] - reserved
    if wishes.shifted:  # what a successor is judged on must not wait for the rest of the day
        held_out, bought = wishes.held_out_left, bought * (SHIFT_LASTS / DAY)
    elif not lately.has_champion:  # nor must a first student: as much will come as has come
        held_out, bought = wishes.held_out_left, lately.events * HELD_OUT_SHARE_OF_GROUPS
    scale = policy.learning_scale
    if not wishes.full:
        scale = next_learning_scale(
            scale,
            spent=wishes.learning_spent,
            due=purses["learning"] * wishes.day_gone,
            budget=purses["learning"],
        )
    return replace(
        policy,
        audit_rate=affordable_rate(purses["audit"], lately.bought_per_day, policy.audit_rate)
        if lately.has_champion
        else wishes.audit_rate,
        held_out_rate=affordable_rate(held_out, bought, policy.held_out_rate),
        # What the teacher answers anyway costs room only: all of it, until the window is full.
        held_out_free_rate=affordable_rate(
            wishes.held_out_window, on_held_out_side, policy.held_out_free_rate
        )
        if enough
        else 1.0,
        # Only against a champion are there answers to differ from.
        pool_rate=affordable_rate(
            wishes.held_out_window,
            on_held_out_side * (wishes.pool_lasts / DAY),
            policy.pool_rate,
        )
        if lately.has_champion
        else 0.0,
        learning_scale=scale,
        # Its floor alone must not draw more than it may buy.
        learning_pi_min=min(
            wishes.learning_pi_min, purses["learning"] / max(lately.bought_per_day, 1.0)
        ),
        cold_start=wishes.cold_start,
        full=wishes.full,
    )
