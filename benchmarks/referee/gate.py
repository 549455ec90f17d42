"""The gate: false promotions in a year, and how long a better student waits."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from benchmarks.referee.figures import Figure, share, tries, waits
from benchmarks.referee.lateness import day_budget, first_policy, wishes
from benchmarks.referee.worlds import Pair
from pipelines.evaluate import CANDIDATE, CHAMPION, evaluate
from pipelines.gate import GateFacts, GatePolicy, judge
from pipelines.rates import DAY, Lately, next_policy
from pipelines.sample import HELD_OUT_SHARE_OF_GROUPS
from pipelines.statistics.certify import certify_threshold
from pipelines.statistics.intervals import count_pairs, wilson_share
from pipelines.statistics.spending import Turn, shares
from pipelines.types import Answers, Estimate, Evaluation, HeldOutItem
from service.sections import DatasetSettings

TARGET = 0.97
AGREEMENT = 0.9
WINDOW = DatasetSettings().held_out_window
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
FACTS = GateFacts(
    has_champion=True, champion_is_current=True, evaluation_is_fresh=True, leaked_items=0
)
CANDIDATES_A_YEAR = 52
DISCORDANCES = (0.05, 0.10)
SEGMENTS = 5
FRESH, HEAD_TO_HEAD = 100, 200
KEPT_OVERNIGHT = 0.9  # of a candidate's outcomes, in the next day's


def promoted(pair: Pair, turn: Turn, seed: int) -> bool:
    """What `judge` says of an evaluation as the learner makes it.

    Thresholds take most of the time, and are read only where the candidate is not found worse:
    without them that verdict is the same.
    """
    policy = GatePolicy()
    if judge(counts_only(pair), policy, FACTS, turn=turn).verdict not in (
        "better",
        "non_inferior",
    ):
        return False
    items = simulated_items(pair.champion_right.size)
    rivals = {CHAMPION: student_answers(pair.champion_confidences, pair.champion_right)}
    ours = student_answers(pair.confidences, pair.right)
    found = evaluate(items, ours, rivals, target=TARGET, alpha=policy.alpha, seed=seed)
    return judge(found, policy, FACTS, turn=turn).promotable


def counts_only(pair: Pair) -> Evaluation:
    """As far as the comparison with the champion reads it."""
    pairs = count_pairs(pair.right.tolist(), pair.champion_right.tolist())
    nothing = certify_threshold([], [], target=TARGET)
    return Evaluation(
        snapshot="simulated",
        items=pairs.total,
        agreement={CANDIDATE: wilson_share(int(pair.right.sum()), pairs.total, 0.05)},
        difference={},
        slices=(),
        flips=(),
        negative_flip_rate=None,
        calibration_error=Estimate(value=0.0, low=0.0, high=0.0, n=pairs.total),
        threshold=nothing,
        champion_threshold=nothing,
        pairs={CHAMPION: pairs},
    )


def simulated_items(count: int) -> list[HeldOutItem]:
    return [
        HeldOutItem(
            event_id=f"event-{i}",
            group_id=f"group-{i}",
            text=f"text {i}",
            label="right",
            segment=f"segment-{i % SEGMENTS}",
        )
        for i in range(count)
    ]


def student_answers(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> Answers:
    return Answers(
        name="student",
        labels=tuple("right" if ok else "wrong" for ok in right),
        confidences=tuple(confidences.tolist()),
    )


def false_promotions_year(count: int, seed: int) -> Iterator[Figure]:
    """A year of candidates that are no better; beside it two naive rules on the same ones.

    The figures are those of the discordance at which it happens most often.
    """
    name = "false_promotions_year"
    begun = [NEW_YEAR + at * timedelta(days=7) for at in range(CANDIDATES_A_YEAR)]
    turns = [
        Turn(attempt=at + 1, look=1, share=one, promotions=0)
        for at, one in enumerate(shares(begun))
    ]
    found = list[NDArray[np.int64]]()
    for place, differ in enumerate(DISCORDANCES):

        def one(generator: np.random.Generator, differ: float = differ) -> tuple[bool, bool, bool]:
            ours = fresh = head_to_head = False
            for turn in turns:
                pair = Pair.drawn(generator, WINDOW, agreement=AGREEMENT, differ=differ, gain=0.0)
                ours = ours or promoted(pair, turn, turn.attempt)
                wins, losses = pair.right & ~pair.champion_right, pair.champion_right & ~pair.right
                fresh |= bool(wins[:FRESH].sum() > losses[:FRESH].sum())
                head_to_head |= bool(wins[:HEAD_TO_HEAD].sum() >= losses[:HEAD_TO_HEAD].sum())
            return ours, fresh, head_to_head

        results = list(tries(f"{name}, {differ:.0%}", count, (seed, 70, place), one))
        found.append(np.array(results, dtype=np.int64).sum(axis=0))
    most = np.max(found, axis=0)
    shares_apart = " or ".join(f"{differ:.0%}" for differ in DISCORDANCES)
    world = (
        f"{CANDIDATES_A_YEAR} candidates a year, none of them better, that differ from the "
        f"champion on {shares_apart} of {WINDOW:,} items: any promoted"
    )
    yield share(name, int(most[0]), count, f"{world}.")
    rules = ("higher score on 100 fresh items", "at least half of 200 head to head")
    for rule, short, hits in zip(rules, ("100_fresh", "200_head_to_head"), most[1:], strict=True):
        yield share(f"{name}_naive_{short}", int(hits), count, f"{world} by the rule: {rule}.")


def held_out_items_a_day(prompts: int, served: float = 0.6) -> float:
    """What the default budget and rates come to, once a student serves; no prompt repeated."""
    lately = Lately(
        events=prompts,
        window=DAY,
        answered=prompts,
        served=round(prompts * served),
        has_champion=True,
    )
    rate = next_policy(first_policy(), day_budget(), lately, wishes()).held_out_rate
    return prompts * HELD_OUT_SHARE_OF_GROUPS * rate


def days_2_points_1000_a_day(count: int, seed: int) -> Iterator[Figure]:
    """One candidate a day, each two points better than the champion and much like the last."""
    a_day = held_out_items_a_day(1_000)
    differ, gain, days = 0.05, 0.02, 365
    turns = [
        Turn(attempt=at + 1, look=1, share=one, promotions=0)
        for at, one in enumerate(shares([NEW_YEAR + at * DAY for at in range(days)]))
    ]

    def one(generator: np.random.Generator) -> float:
        pair = Pair.drawn(generator, WINDOW, agreement=AGREEMENT, differ=differ, gain=gain)
        for turn in turns:
            items = min(WINDOW, round(turn.attempt * a_day))
            if promoted(pair.first(items), turn, turn.attempt):
                return float(turn.attempt)
            pair = pair.tomorrow(generator, kept=KEPT_OVERNIGHT)
            if items == WINDOW:
                pair = pair.renewed(generator, round(a_day))
        return math.inf

    name = "days_2_points_1000_a_day"
    world = (
        f"1,000 prompts a day, which give {a_day:.0f} held-out items a day at the default budget; "
        f"a candidate a day, {100 * gain:g} points better and different on {differ:.0%}: days to "
        "the first that the gate lets pass."
    )
    yield waits(name, list(tries(name, count, (seed, 80), one)), world)
