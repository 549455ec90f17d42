"""Confidence sequences and e-values: inference that stays valid however often one looks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.types import Estimate, PairCounts

# What the e-value bets: shares of the wealth on the next differing pair, mixed evenly.
STAKES: tuple[float, ...] = tuple((i + 0.5) / 20 for i in range(20))
LARGEST_BET = 0.5  # of the empirical-Bernstein sequence; its penalty explodes towards 1


def lambert_w_minus_1(x: float) -> float:
    """The lower real branch of Lambert's W on (-1/e, 0), by fixed-point iteration."""
    w = -2.0
    for _ in range(200):
        following = math.log(-x) - math.log(-w)
        if abs(following - w) < 1e-13 * abs(w):
            return following
        w = following
    return w


def sequence_half_width(
    deviation: float, events: int, *, alpha: float, expected_events: int
) -> float:
    """Half the width of the asymptotic confidence sequence after `events` events.

    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and
    asymptotic confidence sequences. It is narrowest near `expected_events`.
    """
    if events <= 0:
        return math.inf
    tuning = (-lambert_w_minus_1(-(alpha**2) / math.e) - 1.0) / expected_events
    grown = events * tuning + 1.0
    return deviation * math.sqrt(
        2.0 * grown * math.log(math.sqrt(grown) / alpha) / (events * events * tuning)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Sums over some consecutive events of a quantity with known limits."""

    events: int
    total: float
    squares: float


def bernstein_low(
    blocks: Sequence[Block], *, smallest: float, largest: float, alpha: float
) -> float:
    """Lower end of the empirical-Bernstein confidence sequence after the last block.

    Not asymptotic: with probability 1 - alpha it is below the running mean of conditional
    means after every block at once, for any quantity within [smallest, largest]. Bets and
    centres come from earlier blocks only, and stay the same within a block, so that sums per
    minute are all that it needs (Waudby-Smith and Ramdas, Estimating means of bounded random
    variables by betting, section 3.2).
    """
    width = largest - smallest
    events, mean_sum, spread_sum = 0, 0.5, 0.25  # one imagined observation to start from
    bet_events, bet_total, penalty = 0.0, 0.0, math.log(1.0 / alpha)
    for block in blocks:
        if block.events <= 0:
            continue
        total = (block.total - block.events * smallest) / width
        squares = (
            block.squares - 2 * smallest * block.total + block.events * smallest * smallest
        ) / (width * width)
        centre = min(1.0, max(0.0, mean_sum / (events + 1)))
        variance = max(spread_sum / (events + 1), 1e-12)
        events += block.events
        bet = min(
            LARGEST_BET,
            math.sqrt(2.0 * math.log(1.0 / alpha) / (variance * events * math.log1p(events))),
        )
        spread = max(0.0, squares - 2 * centre * total + block.events * centre * centre)
        bet_events += bet * block.events
        bet_total += bet * total
        penalty += (-math.log1p(-bet) - bet) * spread
        mean_sum += total
        spread_sum += spread
    if not bet_events:
        return smallest
    return smallest + width * max(0.0, (bet_total - penalty) / bet_events)


def bernstein_high(
    blocks: Sequence[Block], *, smallest: float, largest: float, alpha: float
) -> float:
    """Upper end of the empirical-Bernstein confidence sequence after the last block."""
    mirrored = [
        Block(events=block.events, total=-block.total, squares=block.squares) for block in blocks
    ]
    return -bernstein_low(mirrored, smallest=-largest, largest=-smallest, alpha=alpha)


def bernstein_sequence(
    blocks: Sequence[Block], *, smallest: float, largest: float, alpha: float
) -> Estimate:
    """Both ends, `alpha` in both tails together."""
    events = sum(block.events for block in blocks)
    mean = sum(block.total for block in blocks) / events if events else math.nan
    return Estimate(
        value=mean,
        low=bernstein_low(blocks, smallest=smallest, largest=largest, alpha=alpha / 2),
        high=bernstein_high(blocks, smallest=smallest, largest=largest, alpha=alpha / 2),
        n=events,
    )


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
