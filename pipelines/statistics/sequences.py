"""The e-value of a paired comparison: evidence that stays valid however often one looks."""

import math

from pipelines.types import PairCounts

# What the e-value bets: shares of the wealth on the next differing pair, mixed evenly.
STAKES: tuple[float, ...] = tuple((i + 0.5) / 20 for i in range(20))


def pair_e_value(pairs: PairCounts, *, margin: float = 0.0) -> float:
    """Evidence against "the candidate is not better than the other by more than -margin".

    The wealth of a gambler who stakes a fixed share on every pair, `1 + stake * (d + margin)`
    with d = 1, -1 or 0, averaged over `STAKES`. Under the null it is a supermartingale in
    the order in which the items came, so that it may be looked at after every item (Ville);
    it depends on the counts only. Each item has to be counted once.
    """
    logs = [
        pairs.wins * math.log1p(stake * (1 + margin))
        + pairs.losses * math.log1p(stake * (margin - 1))
        + pairs.ties * math.log1p(stake * margin)
        for stake in STAKES
    ]
    largest = max(logs)
    mean = sum(math.exp(log - largest) for log in logs) / len(logs)
    log_wealth = largest + math.log(mean)
    return math.exp(log_wealth) if log_wealth < 700 else math.inf
