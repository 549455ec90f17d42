"""Labels that are bought where candidate and champion differ: what 150 of them find."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.referee.figures import Figure, share, tries
from benchmarks.referee.gate import (
    AGREEMENT,
    CANDIDATES_A_YEAR,
    FACTS,
    NEW_YEAR,
    TARGET,
    WINDOW,
    counts_only,
    promoted,
    simulated_items,
    student_answers,
)
from benchmarks.referee.worlds import Pair
from pipelines.checks import groups_needed
from pipelines.evaluate import CHAMPION, evaluate
from pipelines.gate import GatePolicy, judge
from pipelines.pool import MOST_BOUGHT, PoolItem, PoolPart, added, answers_at, part_of, read_pool
from pipelines.rates import DAY
from pipelines.statistics.spending import Turn, shares
from pipelines.types import Answers

DIFFER = 0.05
# Of what both get wrong, they give different labels: such an item is asked for too, and is a tie.
DIFFERENT_MISTAKES = 0.3
POLICY = GatePolicy()
LABELLED = groups_needed(POLICY.min_groups, TARGET)


def power_2_points_150_labels(count: int, seed: int) -> Iterator[Figure]:
    """A candidate that is two points better, and one that is no better, with as many labels."""
    name = "power_2_points_150_labels"
    begun = [NEW_YEAR + at * 7 * DAY for at in range(CANDIDATES_A_YEAR)]
    turns = [
        Turn(attempt=at + 1, look=1, share=one, promotions=0)
        for at, one in enumerate(shares(begun))
    ]
    for place, (gain, short, said) in enumerate(
        ((0.02, name, "two points better"), (0.0, f"{name}_no_gain", "no better"))
    ):

        def one(generator: np.random.Generator, gain: float = gain) -> tuple[bool, bool, bool, int]:
            turn = turns[int(generator.integers(len(turns)))]
            size = LABELLED + WINDOW
            pair = Pair.drawn(generator, size, agreement=AGREEMENT, differ=DIFFER, gain=gain)
            part = _part_of_pool(generator, pair)
            ours = _promoted(pair, part, turn)
            at_random = promoted(pair.first(LABELLED + MOST_BOUGHT), turn, turn.attempt)
            fresh = slice(LABELLED, LABELLED + MOST_BOUGHT)
            higher = pair.right[fresh].sum() > pair.champion_right[fresh].sum()
            return ours, at_random, bool(higher), len(part.items)

        found = np.array(list(tries(short, count, (seed, 75, place), one)), dtype=np.int64)
        ours, at_random, higher, read = found.T
        world = (
            f"One of {CANDIDATES_A_YEAR} candidates a year, {said} than the champion and right "
            f"where it is wrong or the reverse on {DIFFER:.0%}, with {LABELLED} labelled items and "
            f"{WINDOW:,} kept without a label"
        )
        yield share(
            short,
            int(ours.sum()),
            count,
            f"{world}: promotable with at most {MOST_BOUGHT} labels, bought where the two differ.",
            kept_events_read=float(read.mean()),
        )
        yield share(
            f"{short}_naive_at_random",
            int(at_random.sum()),
            count,
            f"{world}: promotable with {MOST_BOUGHT} labels, bought at random.",
        )
        yield share(
            f"{short}_naive_higher_score",
            int(higher.sum()),
            count,
            f"{world}: promoted by the rule: higher score on {MOST_BOUGHT} items at random.",
        )


def _said(generator: np.random.Generator, pair: Pair) -> tuple[Answers, Answers]:
    """What both say to all items; of those that both get wrong, some differently."""
    champion = student_answers(pair.champion_confidences, pair.champion_right)
    ours = student_answers(pair.confidences, pair.right)
    apart = generator.random(pair.right.size) < DIFFERENT_MISTAKES
    labels = tuple(
        "wrong too" if label == "wrong" and other else label
        for label, other in zip(ours.labels, apart, strict=True)
    )
    return replace(ours, labels=labels), champion


def _part_of_pool(generator: np.random.Generator, pair: Pair) -> PoolPart:
    """What is counted of the pool when all the labels have come that were asked for."""
    behind = range(LABELLED, LABELLED + WINDOW)
    ours, champion = (answers_at(answers, behind) for answers in _said(generator, pair))
    items = simulated_items(LABELLED + WINDOW)[LABELLED:]
    unasked = tuple(PoolItem(replace(item, label=""), "unasked") for item in items)
    differ = [one != other for one, other in zip(ours.labels, champion.labels, strict=True)]
    asked = read_pool(unasked, differ, before=frozenset(), asked=0)
    bought = {*asked.wanted}
    pool = [
        PoolItem(item, "labelled", bought=True) if at in bought else unasked[at]
        for at, item in enumerate(items)
    ]
    read = frozenset(items[at].event_id for at in asked.read)
    counted = read_pool(pool, differ, before=read, asked=len(bought)).counted
    return part_of(pool, counted, ours, champion)


def _promoted(pair: Pair, part: PoolPart, turn: Turn) -> bool:
    """As `promoted`, with the pairs of the pool."""
    first = pair.first(LABELLED)
    counts = counts_only(first)
    pairs = {CHAMPION: added(counts.pairs[CHAMPION], part.outcomes())}
    counts = replace(counts, pairs=pairs, pooled=part.facts())
    if judge(counts, POLICY, FACTS, turn=turn).verdict not in ("better", "non_inferior"):
        return False
    found = evaluate(
        simulated_items(LABELLED),
        student_answers(first.confidences, first.right),
        {CHAMPION: student_answers(first.champion_confidences, first.champion_right)},
        target=TARGET,
        alpha=POLICY.alpha,
        seed=turn.attempt,
        pool=part,
    )
    return judge(found, POLICY, FACTS, turn=turn).promotable
