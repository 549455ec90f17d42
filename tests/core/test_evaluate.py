"""An evaluation compares all on the same items, and counts each group once."""

import dataclasses
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from simulated_pairs import held_out_items

from pipelines.evaluate import departed_pairs, evaluate, majority_answers, thin
from pipelines.identities import snapshot_hash
from pipelines.marks import asked_of
from pipelines.types import Answers, Evaluation, HeldOutItem, PairCounts


def say(name: str, labels: str, confidence: float = 0.9) -> Answers:
    """`+` is right, `-` is wrong."""
    words = tuple("right" if mark == "+" else f"wrong by {name}" for mark in labels)
    return Answers(name=name, labels=words, confidences=(confidence,) * len(words))


def test_everyone_is_compared_on_the_same_items() -> None:
    items = held_out_items(6)
    found = evaluate(
        items,
        say("new", "+++++-"),
        {"champion": say("old", "+++--+"), "base": say("base", "+-----")},
        target=0.9,
    )
    assert found.items == 6
    assert found.agreement["candidate"].value == pytest.approx(5 / 6)
    assert found.agreement["champion"].value == pytest.approx(4 / 6)
    assert found.pairs["champion"] == PairCounts(wins=2, losses=1, ties=3)
    assert found.difference["base"].value == pytest.approx(4 / 6)
    assert found.negative_flip_rate is not None
    assert found.negative_flip_rate.value == pytest.approx(1 / 6)
    assert found.champion_threshold is not None
    assert found.coverage_gain_p == 1.0


def test_flips_list_what_was_right_and_is_wrong_first() -> None:
    found = evaluate(
        held_out_items(4), say("new", "++-+"), {"champion": say("old", "+-+-")}, target=0.9
    )
    assert [(flip.event_id, flip.negative) for flip in found.flips] == [
        ("event-2", True),
        ("event-1", False),
        ("event-3", False),
    ]
    assert (found.flips[0].before, found.flips[0].after) == ("right", "wrong by new")


def test_a_flip_is_served_at_or_above_the_certified_threshold() -> None:
    items = held_out_items(400)
    wrong = {0: 0.99, **dict.fromkeys(range(1, 61), 0.4)}  # and the confidence with which
    candidate = Answers(
        name="new",
        labels=tuple("wrong" if n in wrong else "right" for n in range(400)),
        confidences=tuple(wrong.get(n, 0.99) for n in range(400)),
    )
    found = evaluate(items, candidate, {"champion": say("old", "+" * 399 + "-")}, target=0.9)
    assert found.threshold.value is not None
    assert 0.4 < found.threshold.value <= 0.99
    served = {flip.event_id: flip.negative for flip in found.flips if flip.served}
    assert served == {"event-0": True, "event-399": False}
    assert len(found.flips) == 62


def test_no_flip_is_served_where_nothing_is_certified() -> None:
    found = evaluate(
        held_out_items(20),
        say("new", "-" + "+" * 19),
        {"champion": say("old", "+" * 20)},
        target=0.9,
    )
    assert found.threshold.value is None
    assert [flip.served for flip in found.flips] == [False]


def test_items_that_left_are_carried_once_with_their_outcome() -> None:
    items = held_out_items(6)

    def judged(some: slice, new: str, old: str) -> Evaluation:
        return evaluate(items[some], say("new", new), {"champion": say("old", old)}, target=0.9)

    earlier = [judged(slice(4), "+-+-", "-+-+"), judged(slice(1, 5), "-+-+", "+-++")]
    assert departed_pairs(earlier, items[2:]) == PairCounts(wins=1, losses=1)
    assert departed_pairs(earlier, []) == PairCounts(wins=2, losses=2)
    assert departed_pairs(earlier, items) == PairCounts()


def test_slices_start_with_the_worst_and_leave_none_out() -> None:
    items = held_out_items(300, segments=3)
    champion = "+" * 300
    candidate = "".join("-" if i % 3 == 1 and i < 60 else "+" for i in range(300))
    found = evaluate(items, say("new", candidate), {"champion": say("old", champion)}, target=0.9)
    assert found.slices[0].segment == "segment-1"
    assert {part.segment for part in found.slices} == {"segment-0", "segment-1", "segment-2"}
    worst = found.slices[0]
    assert worst.pairs == PairCounts(losses=20, ties=80)
    assert worst.difference is not None
    assert worst.difference.high < 0
    assert found.slices[1].difference is not None


def test_pairs_are_kept_by_the_label_that_the_teacher_gave() -> None:
    items = [
        dataclasses.replace(item, label=label)
        for item, label in zip(held_out_items(6), "abbabc", strict=True)
    ]
    items[5] = dataclasses.replace(items[5], label="")  # its answer was no label: nobody is right
    new = Answers(name="new", labels=(*"abxxxc",), confidences=(0.9,) * 6)
    old = Answers(name="old", labels=(*"xbbxxc",), confidences=(0.9,) * 6)
    found = evaluate(items, new, {"champion": old}, target=0.9)
    assert found.by_label == {"a": PairCounts(wins=1, ties=1), "b": PairCounts(losses=1, ties=2)}
    assert evaluate(items, new, {}, target=0.9).by_label == {}


def test_who_has_to_win_is_certified_with_more_confidence() -> None:
    """The items on which it wins flatter its threshold as well."""
    items, new = held_out_items(200), say("new", "+" * 196 + "-" * 4)
    first = evaluate(items, new, {}, target=0.95)
    chosen = evaluate(items, new, {"champion": say("old", "-" * 200)}, target=0.95)
    assert (first.threshold.confidence_level, first.threshold.value is None) == (0.95, False)
    assert (chosen.threshold.confidence_level, chosen.threshold.value is None) == (0.975, True)


def test_a_threshold_is_promised_for_traffic_and_students_compared_on_distinct_items() -> None:
    items = held_out_items(300)
    often = dataclasses.replace(items[0], event_id="often", group_id="t", weight=300.0)
    traffic = [*items[:200], often]
    alike = evaluate(items, say("new", "+" * 300), {}, target=0.9)
    for mark, share, kept in (("+", 0.99, True), ("-", 0.99, False), ("-", 0.2, True)):
        answers = say("new", "+" * 300 + mark)
        sure = (*answers.confidences[:299], 0.1, share)
        found = evaluate(
            items, dataclasses.replace(answers, confidences=sure), {}, target=0.9, traffic=traffic
        )
        assert found.agreement == alike.agreement
        assert found.snapshot != alike.snapshot
        assert (found.threshold.value is not None) is kept
        if kept:
            covered = 1.0 if share > 0.9 else 200 / 500
            assert found.threshold.coverage == pytest.approx(covered)
            assert "share of the traffic" in found.threshold.reason


def test_what_the_traffic_adds_has_to_be_answered() -> None:
    items = held_out_items(4)
    more = dataclasses.replace(items[0], event_id="more")
    assert [item.event_id for item in asked_of(items, [items[2], more])] == [
        *(item.event_id for item in items),
        "more",
    ]
    with pytest.raises(ValueError, match="new gave 4 labels"):
        evaluate(items, say("new", "++++"), {}, target=0.9, traffic=[more])


def test_a_first_student_has_no_flips() -> None:
    found = evaluate(held_out_items(3), say("new", "++-"), {}, target=0.9)
    assert found.flips == ()
    assert found.negative_flip_rate is None
    assert found.champion_threshold is None
    assert found.coverage_gain_p is None


def test_an_empty_snapshot_gives_unknown_figures_and_no_error() -> None:
    found = evaluate([], say("new", ""), {"champion": say("old", "")}, target=0.9)
    assert found.items == 0
    assert math.isnan(found.agreement["candidate"].value)
    assert found.threshold.value is None


def test_a_group_counts_once() -> None:
    items = held_out_items(3)
    twin = dataclasses.replace(items[1], event_id="another")
    with pytest.raises(ValueError, match="group-1 is in the snapshot twice"):
        evaluate([*items, twin], say("new", "++++"), {}, target=0.9)


def test_answers_that_do_not_belong_to_the_snapshot_are_refused() -> None:
    with pytest.raises(ValueError, match="old gave 3 labels"):
        evaluate(held_out_items(4), say("new", "++++"), {"champion": say("old", "+++")}, target=0.9)


def test_unusable_answers_are_counted() -> None:
    broken = Answers(
        name="new",
        labels=("right", "", "right", "right"),
        confidences=(0.9, 0.9, math.nan, 1.5),
    )
    assert evaluate(held_out_items(4), broken, {}, target=0.9).unusable_answers == 3


def test_the_same_seed_gives_the_same_evaluation() -> None:
    items = held_out_items(50)
    rivals = {"champion": say("old", "+-" * 25)}
    candidate = say("new", "++++-" * 10)
    once = evaluate(items, candidate, rivals, target=0.9, seed=3)
    assert once == evaluate(items, candidate, rivals, target=0.9, seed=3)


def test_majority_answers_are_the_most_frequent_label() -> None:
    found = majority_answers(held_out_items(2), {"b": 3, "a": 3, "c": 1})
    assert found.labels == ("a", "a")
    assert found.confidences == pytest.approx((3 / 7, 3 / 7))
    with pytest.raises(ValueError, match="no labels"):
        majority_answers(held_out_items(2), {})


def test_the_snapshot_hash_knows_content_and_not_order() -> None:
    items = held_out_items(5)
    changed = [dataclasses.replace(items[0], label="other"), *items[1:]]
    assert snapshot_hash(items) == snapshot_hash(items[::-1])
    assert snapshot_hash(items) != snapshot_hash(changed)
    assert snapshot_hash(items) != snapshot_hash(items[1:])


def drawn_items(generator: np.random.Generator) -> list[HeldOutItem]:
    """Hard items (wrong for the candidate) were drawn four times as often."""
    items = []
    for item in held_out_items(8_000):
        hard = generator.random() < 0.2
        probability = 0.4 if hard else 0.1
        if generator.random() < probability:
            items.append(
                dataclasses.replace(
                    item, segment="hard" if hard else "easy", inclusion_probability=probability
                )
            )
    return items


def test_unequal_draws_are_thinned_to_equal_ones() -> None:
    items = drawn_items(np.random.default_rng(0))
    labels = "".join("-" if item.segment == "hard" else "+" for item in items)
    found = evaluate(items, say("new", labels), {"champion": say("old", labels)}, target=0.9)
    assert np.mean([mark == "+" for mark in labels]) < 0.6
    assert found.agreement["candidate"].low < 0.8 < found.agreement["candidate"].high
    assert found.pairs["champion"].total == found.items == len(thin(items)) < len(items)


def test_equal_draws_are_all_kept() -> None:
    items = [dataclasses.replace(item, inclusion_probability=0.05) for item in held_out_items(500)]
    assert thin(items) == tuple(items)


def test_one_rare_item_does_not_cost_the_evidence() -> None:
    common = [dataclasses.replace(item, inclusion_probability=1.0) for item in held_out_items(999)]
    rare = dataclasses.replace(
        common[0], event_id="rare", group_id="rare", inclusion_probability=0.001
    )
    kept = thin([rare, *common])
    assert rare in kept
    assert 450 <= len(kept) <= 550


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.5, math.nan])
def test_an_impossible_probability_is_refused(probability: float) -> None:
    items = held_out_items(2)
    broken = dataclasses.replace(items[0], inclusion_probability=probability)
    with pytest.raises(ValueError, match="outside"):
        thin([broken, items[1]])


def test_the_report_says_when_its_items_were_asked() -> None:
    first, last = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC)
    moments = [last, first, datetime(2026, 3, 4, tzinfo=UTC), None]
    items = [
        dataclasses.replace(item, occurred_at=at)
        for item, at in zip(held_out_items(4), moments, strict=True)
    ]
    assert evaluate(items, say("new", "+++-"), {}, target=0.9).period == (first, last)
    assert evaluate(held_out_items(4), say("new", "+++-"), {}, target=0.9).period is None
