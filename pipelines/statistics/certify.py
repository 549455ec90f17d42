"""The cascade threshold as a promise: fixed-sequence testing over the confidence grid."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.coverage import CONFIDENCE_BINS, CONFIDENCE_EDGES, confidence_bins
from pipelines.statistics.intervals import binomial_at_most, exact_high, exact_low
from pipelines.types import Estimate, Threshold

# Where the sequence starts decides much. At the bare minimum of items, one disagreement among the
# surest ends it, and with a teacher that errs now and then so it often does; where a third of
# the items lie above, students of whom only the surest tenth is good get nothing. So it starts
# at three places: with half of alpha at a third, and with a quarter each nearer to the minimum.
STARTING_SHARE = 1 / 3
STARTING_MULTIPLE = 4
PARTS = 4  # of alpha

# A certificate reaches only as low as its evidence did. No edge is tested once this share of
# the items, or less, lies below: nobody looked at what traffic may come to bring down there.
FLOOR_SHARE = 0.05

ROUNDING = 1e-6  # sums of weights are exact to so much
BY_WEIGHT = " Each prompt counts by its share of the traffic."

SWAPS = 9_999
_SWAPS_AT_ONCE = 250
_EXTREME_ENOUGH = 50


def items_needed(target: float, confidence_level: float = 0.95) -> int:
    """How many items without an error it takes to certify `target`: 149 for 98 %."""
    return math.ceil(math.log(1.0 - confidence_level) / math.log(target) - 1e-9)


def first_steps(items: int, target: float, confidence_level: float = 0.95) -> tuple[int, ...]:
    """How many items lie above the edge at which each quarter of alpha enters, strict first.

    They depend on no outcome. The last is where all of alpha may have come together.
    """
    needed = items_needed(target, confidence_level)
    main = max(needed, int(items * STARTING_SHARE))
    strictest = items_needed(target, 1.0 - (1.0 - confidence_level) / PARTS)
    starts = (strictest, STARTING_MULTIPLE * needed, main, main)
    return tuple(min(start, main) for start in starts)


def errors_allowed(items: int, target: float, confidence_level: float = 0.95) -> int:
    """The most errors among `items` with which `target` is still certified; -1: too few items."""
    allowed = -1
    while binomial_at_most(allowed + 1, items, 1.0 - target) <= 1.0 - confidence_level:
        allowed += 1
        if allowed >= items:
            break
    return allowed


def certify_threshold(
    confidences: Sequence[float],
    correct: Sequence[bool],
    *,
    target: float,
    confidence_level: float = 0.95,
    floor_share: float = FLOOR_SHARE,
    weights: Sequence[float] | None = None,
) -> Threshold:
    """The loosest threshold at which agreement of at least `target` is certified.

    The edges of the confidence histogram are tested from strict to loose, each by an exact
    binomial test at the alpha that has come so far: a part of it enters at each of
    `first_steps`, a passed test hands all it had to the next, a failed one loses it (the
    fallback procedure: Wiens, Pharmaceutical Statistics 2003). Any false certificate at all
    then has a probability of at most alpha, and no correction for the number of tests is due.
    Items must have been drawn with equal probability (`pipelines.evaluate.thin`).

    With `weights` an item counts for so many draws of the traffic, none of which counts for more
    than one (`pipelines.traffic`). Sums are rounded to fewer items and more errors. A binomial
    number of errors is then spread more than the weighted one, which is the safe side; that is
    no theorem for every tail, but measured where few prompts are most of the traffic (`make
    bench-referee`, certificates_broken_zipf).

    No edge lies below the bin that holds the items' quantile `floor_share`, nor at the lower
    end of a bin without items, nor at 0. Items with a confidence of 0, beyond the student's
    reach (`pipelines.reach`), are never trusted and count for coverage only.
    """
    if len(confidences) != len(correct):
        raise ValueError(f"{len(confidences)} confidences for {len(correct)} outcomes")
    if not (0.0 < target < 1.0 and 0.0 < confidence_level < 1.0):
        return _no_threshold(
            target, confidence_level, f"A target of {100 * target:g} % can never be certified."
        )
    above, wrong = _counts_above(confidences, correct, weights)
    starts = first_steps(above[0], target, confidence_level)
    enough = (1.0 - floor_share) * above[1]
    parts, begun = 0, 0
    passed: int | None = None
    failure: Threshold | None = None
    for edge in _testable(above, enough):
        reached = sum(above[edge] >= start for start in starts)
        parts, begun = parts + reached - begun, reached
        if not parts:
            continue
        level = 1.0 - parts * (1.0 - confidence_level) / PARTS
        if binomial_at_most(wrong[edge], above[edge], 1.0 - target) <= 1.0 - level:
            passed = edge
            continue
        failure = _first_step_failed(above[edge], wrong[edge], edge, target, level)
        parts = 0
        if begun == PARTS:
            break
    if passed is not None:
        found = _certified(above[passed], wrong[passed], above[0], passed, target, confidence_level)
        if weights is not None:
            found = replace(found, reason=found.reason + BY_WEIGHT)
        return _with_floor(found, floor_share) if above[passed] >= enough else found
    return failure or _too_few(above, enough, starts[-1], target, confidence_level)


def coverage_gain_p(
    candidate: tuple[Sequence[float], Sequence[bool]],
    champion: tuple[Sequence[float], Sequence[bool]],
    *,
    target: float,
    confidence_level: float = 0.95,
    seed: int = 0,
    swaps: int = SWAPS,
) -> float:
    """How often two equally good students differ in certified coverage as much as these two.

    Takes each one's (confidences, correct) on the same items, swaps the two students' answers
    item by item at random, and certifies both anew. That takes in the luck of the certified
    threshold itself, which can differ by many points between equal students.
    """
    steps = [_steps(*candidate), _steps(*champion)]
    items = len(candidate[1])
    if not items or not 0.0 < target < 1.0:
        return 1.0
    starts = first_steps(items, target, confidence_level)
    allowed = _allowed_by_parts(items, target, confidence_level)
    gain = _certified_counts(*_sums(steps[0]), allowed, starts) - _certified_counts(
        *_sums(steps[1]), allowed, starts
    )
    if gain[0] <= 0:
        return 1.0
    together = steps[0] + steps[1]
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for done in range(0, swaps, _SWAPS_AT_ONCE):
        rows = min(_SWAPS_AT_ONCE, swaps - done)
        kept = generator.integers(0, 2, size=(rows, items)).astype(np.float32)
        first = kept @ (steps[0] - steps[1]) + steps[1].sum(axis=0)
        second = together.sum(axis=0) - first
        swapped = _certified_counts(*_halves(first), allowed, starts) - _certified_counts(
            *_halves(second), allowed, starts
        )
        extreme = np.flatnonzero(swapped >= gain[0])
        if as_extreme + extreme.size >= _EXTREME_ENOUGH:
            # Besag and Clifford's sequential p-value: clearly chance, no need to go on.
            last = int(extreme[_EXTREME_ENOUGH - as_extreme - 1])
            return _EXTREME_ENOUGH / (done + last + 1)
        as_extreme += int(extreme.size)
    return (1 + as_extreme) / (1 + swaps)


def _counts_above(
    confidences: Sequence[float], correct: Sequence[bool], weights: Sequence[float] | None
) -> tuple[list[int], list[int]]:
    """For each edge: items at or above it, and errors among them; against the student rounded."""
    bins = confidence_bins(confidences)
    wrong = ~np.asarray(correct, dtype=bool)
    each = np.ones(wrong.size) if weights is None else np.asarray(weights, dtype=np.float64)
    items = np.bincount(bins, each, CONFIDENCE_BINS)[::-1].cumsum()[::-1]
    errors = np.bincount(bins, each * wrong, CONFIDENCE_BINS)[::-1].cumsum()[::-1]
    return (
        [math.floor(count + ROUNDING) for count in items],
        [math.ceil(count - ROUNDING) for count in errors],
    )


def _testable(above: Sequence[int], enough: float) -> Iterator[int]:
    """Edges from strict to loose that an item holds up, until `enough` items lie above one."""
    for edge in range(CONFIDENCE_BINS - 1, 0, -1):
        stricter = above[edge + 1] if edge + 1 < CONFIDENCE_BINS else 0
        if stricter >= enough:
            return
        if above[edge] > stricter:
            yield edge


def _steps(confidences: Sequence[float], correct: Sequence[bool]) -> NDArray[np.float32]:
    """One row an item: at or above each edge, then the same for errors only."""
    bins = confidence_bins(confidences)
    above = bins[:, None] >= np.arange(CONFIDENCE_BINS)[None, :]
    wrong = above & ~np.asarray(correct, dtype=bool)[:, None]
    return np.concatenate([above, wrong], axis=1).astype(np.float32)


def _sums(steps: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return _halves(steps.sum(axis=0, keepdims=True))


def _halves(sums: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = np.rint(sums).astype(np.int64)
    return counts[:, :CONFIDENCE_BINS], counts[:, CONFIDENCE_BINS:]


@lru_cache(maxsize=8)
def _allowed_by_parts(items: int, target: float, confidence_level: float) -> NDArray[np.int64]:
    """`errors_allowed` for every number of items up to `items`, a row for each part of alpha."""
    allowed = np.full((PARTS + 1, items + 1), -1, dtype=np.int64)
    for parts in range(1, PARTS + 1):
        alpha, current = parts * (1.0 - confidence_level) / PARTS, -1
        for count in range(1, items + 1):  # it never falls as items come
            while binomial_at_most(current + 1, count, 1.0 - target) <= alpha:
                current += 1
            allowed[parts, count] = current
    allowed.flags.writeable = False  # it is cached
    return allowed


def _certified_counts(
    above: NDArray[np.int64],
    wrong: NDArray[np.int64],
    allowed: NDArray[np.int64],
    starts: tuple[int, ...],
) -> NDArray[np.int64]:
    """Items above the certified threshold, for many outcomes at once (one a row)."""
    reached = (above[:, :, None] >= np.array(starts)).sum(axis=2)
    entering = reached - np.pad(reached, ((0, 0), (0, 1)))[:, 1:]
    stricter = np.pad(above, ((0, 0), (0, 1)))[:, 1:]
    testable = stricter < (1.0 - FLOOR_SHARE) * above[:, 1:2]
    parts = np.zeros(len(above), dtype=np.int64)
    counts = np.zeros(len(above), dtype=np.int64)
    for edge in range(CONFIDENCE_BINS - 1, 0, -1):
        parts += entering[:, edge]
        passed = testable[:, edge] & (wrong[:, edge] <= allowed[parts, above[:, edge]])
        counts[passed] = above[passed, edge]
        parts[~passed] = 0
    return counts


def _certified(
    above: int, wrong: int, items: int, edge: int, target: float, confidence_level: float
) -> Threshold:
    alpha = 1.0 - confidence_level
    agreement = Estimate(
        value=(above - wrong) / above,
        low=exact_low(above - wrong, above, alpha),
        high=exact_high(above - wrong, above, alpha),
        n=above,
    )
    return Threshold(
        value=CONFIDENCE_EDGES[edge],
        target=target,
        confidence_level=confidence_level,
        agreement_above=agreement,
        coverage=above / items,
        reason=(
            f"Of the {above} items with a confidence of at least {CONFIDENCE_EDGES[edge]:g}, "
            f"{wrong} disagree{'s' if wrong == 1 else ''} with the teacher: agreement is at least "
            f"{_percent(agreement.low)} with {_percent(confidence_level)} confidence."
        ),
    )


def _first_step_failed(
    above: int, wrong: int, edge: int, target: float, confidence_level: float
) -> Threshold:
    allowed = errors_allowed(above, target, confidence_level)
    return _no_threshold(
        target,
        confidence_level,
        f"Even of the {above} most confident items (confidence at least "
        f"{CONFIDENCE_EDGES[edge]:g}) {wrong} disagree{'s' if wrong == 1 else ''} with the "
        f"teacher; {_percent(target)} allows {allowed}.",
    )


def _with_floor(found: Threshold, floor_share: float) -> Threshold:
    share = _percent(1.0 - floor_share)
    floor = f" No lower threshold is tested where {share} of the items lie above."
    return replace(found, reason=found.reason + floor)


def _too_few(
    above: Sequence[int], enough: float, needed: int, target: float, confidence_level: float
) -> Threshold:
    items = above[0]
    most = max((above[edge] for edge in _testable(above, enough)), default=0)
    within = f", {most} of them above the lowest threshold that is tested"
    return _no_threshold(
        target,
        confidence_level,
        f"{_percent(target)} needs {needed} items without an error above the threshold; "
        f"there are {items} items{within if items >= needed else ''}.",
    )


def _no_threshold(target: float, confidence_level: float, reason: str) -> Threshold:
    return Threshold(
        value=None,
        target=target,
        confidence_level=confidence_level,
        agreement_above=None,
        coverage=0.0,
        reason=reason,
    )


def _percent(share: float) -> str:
    return f"{math.floor(share * 1000 + 1e-9) / 10:g} %"
