"""Kept events: read in an order that knows no label, counted whole, for one comparison alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from simulated_pairs import held_out_items

from pipelines.evaluate import departed_pairs, evaluate
from pipelines.gate import GateFacts, GatePolicy, Turn, compared, judge
from pipelines.pool import (
    MOST_BOUGHT,
    PoolItem,
    PoolPart,
    Standing,
    pairs_in_words,
    part_of,
    read_pool,
)
from pipelines.statistics.sequences import pair_e_value
from pipelines.types import Answers, PairCounts

FIRST = Turn(attempt=1, look=1, share=0.25, promotions=0)


def kept(count: int, standing: Standing = "unasked", *, label: str = "right") -> list[PoolItem]:
    """Of other groups than `held_out_items`."""
    return [
        PoolItem(
            replace(
                item,
                event_id=f"kept-{at}",
                group_id=f"kept-{at}",
                label=label if standing == "labelled" else "",
            ),
            standing,
            bought=standing == "labelled",
        )
        for at, item in enumerate(held_out_items(count))
    ]


def say(name: str, labels: Sequence[str], confidence: float = 0.9) -> Answers:
    return Answers(name=name, labels=tuple(labels), confidences=(confidence,) * len(labels))


def part(items: list[PoolItem], ours: Sequence[str], theirs: Sequence[str]) -> PoolPart:
    return part_of(items, range(len(items)), say("new", ours), say("old", theirs))


def ids(pool: Sequence[PoolItem], places: Sequence[int]) -> frozenset[str]:
    return frozenset(pool[at].item.event_id for at in places)


def test_equal_answers_are_a_tie_without_a_label_and_a_missing_label_is_a_loss() -> None:
    items = [*kept(3, "labelled"), *kept(4)[3:], *kept(5, "missing")[4:], *kept(6)[5:]]
    found = part(
        items,
        ["right", "wrong", "wrong", "a", "right", "b"],
        ["wrong", "right", "wrong too", "a", "wrong", "b"],
    )
    assert found.outcomes() == (1, -1, 0, 0, -1, 0)
    no_label = part(kept(2, "labelled", label=""), ["a", ""], ["b", "b"])
    assert no_label.outcomes() == (0, 0), "the teacher's answer was none: nobody is right"
    facts = found.facts()
    assert (facts.items, facts.agreed, facts.bought, facts.missing) == (6, 2, 3, 1)


def test_no_more_is_read_than_may_be_bought_and_the_last_one_bought_is_read() -> None:
    pool = kept(4_000)
    differ = [at % 10 == 0 for at in range(4_000)]
    found = read_pool(pool, differ, before=frozenset(), asked=0)
    assert len(found.wanted) == MOST_BOUGHT
    assert found.read[-1] == found.wanted[-1]
    assert found.counted == (), "a part is counted whole or not at all"
    assert 0.7 < len(found.read) / 1_500 < 1.3, "of all ages alike"
    assert found.read[:50] != tuple(sorted(found.read)[:50])


def test_what_was_read_is_counted_when_its_labels_have_come_however_the_pool_grew() -> None:
    pool = kept(300)
    differ = [at % 10 == 0 for at in range(300)]
    first = read_pool(pool, differ, before=frozenset(), asked=0)
    read = ids(pool, first.read)
    assert len(read) == 300

    asked = ids(pool, first.wanted)
    waiting = [
        one._replace(standing="awaited") if one.item.event_id in asked else one for one in pool
    ]
    early = read_pool(waiting, differ, before=read, asked=MOST_BOUGHT)
    assert (early.counted, early.wanted) == ((), ())
    assert ids(pool, early.awaited) == asked

    came = [
        one._replace(standing="labelled") if one.item.event_id in asked else one for one in pool
    ]
    grown = [*came, *kept(400)[300:]]
    differ += [at % 10 == 0 for at in range(100)]
    held = read_pool(grown, differ, before=read, asked=MOST_BOUGHT)
    assert ids(grown, held.counted) == read
    further = read_pool(grown, differ, before=read, asked=len(asked))
    assert ids(grown, further.counted) == read
    assert len(further.wanted) == 10
    assert len(further.read) == 400


def test_a_label_that_is_there_is_not_asked_for_again() -> None:
    pool = kept(100, "labelled")
    found = read_pool(pool, [True] * 100, before=frozenset(), asked=0)
    assert (found.wanted, len(found.counted)) == ((), 100)


def test_kept_events_change_the_comparison_with_the_champion_and_nothing_else() -> None:
    items = held_out_items(60, segments=2)
    ours, theirs = ["right"] * 54 + ["wrong"] * 6, ["right"] * 51 + ["wrong"] * 9
    said = say("new", ours), {"champion": say("old", theirs), "base": say("base", theirs)}
    pool = part(
        kept(20, "labelled"),
        ["right"] * 4 + ["wrong"] + ["a"] * 15,
        ["no"] * 4 + ["right"] + ["a"] * 15,
    )
    alone, both = evaluate(items, *said, target=0.6), evaluate(items, *said, target=0.6, pool=pool)
    assert alone.pairs["champion"] == PairCounts(wins=3, losses=0, ties=57)
    assert both.pairs["champion"] == PairCounts(wins=7, losses=1, ties=72)
    assert both.pairs["base"] == alone.pairs["base"]
    for name in (
        "items", "agreement", "threshold", "champion_threshold", "calibration_error", "shown",
        "coverage_gain_p", "period", "snapshot",
    ):  # fmt: skip
        assert getattr(both, name) == getattr(alone, name), name
    assert {flip.event_id for flip in both.flips} - {flip.event_id for flip in alone.flips} == {
        f"kept-{at}" for at in range(5)
    }
    (segment,) = [one for one in both.slices if one.segment == "segment-0"]
    assert segment.pairs is not None
    assert (segment.agreement.n, segment.pairs.total) == (30, 50)
    with pytest.raises(ValueError, match="twice"):
        evaluate([*items, pool.items[0].item], *_with_one_more(said), target=0.6, pool=pool)


def _with_one_more(said: tuple[Answers, dict[str, Answers]]) -> tuple[Answers, dict[str, Answers]]:
    ours, others = said
    more = {name: say(name, [*one.labels, "right"]) for name, one in others.items()}
    return say("new", [*ours.labels, "right"]), more


def test_a_kept_event_bets_once_and_is_not_forgotten_when_it_has_left() -> None:
    items = held_out_items(40)
    same = say("new", ["right"] * 40), {"champion": say("old", ["right"] * 40)}
    pool = part(kept(3, "labelled"), ["right", "wrong", "a"], ["wrong", "right", "a"])
    found = evaluate(items, *same, target=0.6, pool=pool)
    assert departed_pairs([found, found], items, ["kept-0", "kept-1"]) == PairCounts()
    assert departed_pairs([found, found], items, ["kept-0"]) == PairCounts(losses=1)


def test_a_candidate_that_waits_for_labels_has_used_nothing_up() -> None:
    items = held_out_items(300)
    said = say("new", ["right"] * 300), {"champion": say("old", ["right"] * 300)}
    facts = GateFacts(
        has_champion=True,
        champion_is_current=True,
        evaluation_is_fresh=True,
        leaked_items=0,
        labels_awaited=12,
    )
    found = evaluate(items, *said, target=0.6)
    report = judge(found, GatePolicy(), facts, turn=FIRST)
    assert [check.name for check in report.checks if not check.passed] == ["labels_came"]
    assert not compared(report)
    assert not report.promotable
    few = judge(
        evaluate(
            items[:20],
            say("new", ["right"] * 20),
            {"champion": say("old", ["right"] * 20)},
            target=0.6,
        ),
        GatePolicy(),
        facts,
        turn=FIRST,
    )
    assert [check.name for check in few.checks if not check.passed] == ["enough_items"]


def test_pairs_are_counted_in_words() -> None:
    items = held_out_items(40)
    same = say("new", ["right"] * 40), {"champion": say("old", ["right"] * 40)}
    found = evaluate(items, *same, target=0.6)
    assert pairs_in_words(found, 0) == ""
    assert pairs_in_words(found, 3).startswith("3 labels of kept events are asked for")
    pool = part([*kept(2, "labelled"), *kept(3, "missing")[2:]], ["a"] * 3, ["b"] * 3)
    assert pairs_in_words(evaluate(items, *same, target=0.6, pool=pool), 0) == (
        "3 of the pairs with the champion are events that were kept without asking for a label: 0 "
        "were decided by both giving the same answer, and 2 labels were bought where they differ. "
        "No label could be had for 1; they count against this version."
    )


def test_equally_good_students_are_told_apart_no_more_often_for_stopping_at_a_difference() -> None:
    """Reading until so many differ is a stopping time; stopping before a difference is none."""
    generator = np.random.default_rng(5)
    most, worlds, wealth = 40, 2_000, 0.0
    for _ in range(worlds):
        differ = generator.random(1_500) < 0.05
        last = int(np.flatnonzero(differ)[most - 1]) + 1
        wins = int((generator.random(most) < 0.4).sum())
        pairs = PairCounts(wins=wins, losses=most - wins, ties=last - most)
        wealth += pair_e_value(pairs, margin=0.01) / worlds  # worse by exactly the margin
    assert wealth < 1.3, "it is 1 on average, and heavy-tailed"
