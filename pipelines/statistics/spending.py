"""How a year's allowance of false promotions is shared among candidates that keep coming."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

# Half of a budget that holds half a year's allowance, and gets the other half within a year.
# A larger fraction favours the first candidate after a pause, a smaller one the next dozen; what
# a candidate has in the long run of daily or weekly ones depends on neither.
FRACTION = 1 / 2
CAPACITY = 1 / 2
YEAR = timedelta(days=366)  # a leap year is no exception


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A candidate's place in the sequence of comparisons of its task, before it is judged.

    `attempt` counts the comparisons that began in its calendar year (UTC), from 1; `look` those
    of this very candidate with this champion, from 1; `share` is its part of the year's alpha,
    in (0, 1]; `promotions` of the candidates first compared in that calendar year were approved.
    """

    attempt: int
    look: int
    share: float
    promotions: int


def shares(begun: Sequence[datetime]) -> list[float]:
    """The share of the year's alpha of each comparison, given when each began, in order.

    Predictable: a share depends on the times up to its own and on no outcome. In any 366 days
    the shares sum to at most 1: `CAPACITY` at most was there at the beginning, and the rest was
    added. A clock that was put back adds nothing.
    """
    found: list[float] = []
    budget = CAPACITY
    for at, moment in enumerate(begun):
        waited = max(timedelta(0), moment - begun[at - 1]) if at else timedelta(0)
        budget = min(CAPACITY, budget + (1 - CAPACITY) * (waited / YEAR))
        found.append(FRACTION * budget)
        budget -= found[-1]
    return found


def level(alpha: float, turn: Turn) -> float:
    """What this look at this candidate may spend of `alpha`, the allowance of one year.

    The first look has `alpha x share`: its p-values rest on items that other candidates met
    too, and under such dependence only the sum of the levels is sure (the union bound). Later
    looks rest on an e-value, and may spend `promotions + 1` times as much: e-LOND keeps the
    expected share of false promotions among the promotions at alpha under any dependence (Xu
    and Ramdas, Online multiple testing with e-values, AISTATS 2024). Without a
    promotion before it the factor is 1, so while no candidate is truly better the chance of
    any false promotion stays below alpha. No look has more than alpha.

    Assumed: when candidates come does not depend on how earlier ones did on the same items.
    Raises ValueError where the turn is none.
    """
    if turn.attempt < 1 or turn.look < 1:
        raise ValueError(f"attempt {turn.attempt} and look {turn.look} count from 1")
    if not (0.0 < turn.share <= 1.0 and turn.promotions >= 0):
        raise ValueError(f"a share of {turn.share} after {turn.promotions} promotions is no turn")
    factor = 1 if turn.look == 1 else turn.promotions + 1
    return min(alpha, alpha * turn.share * factor)
