"""A promise is about traffic: prompts count by their share of it, on both sides."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from core_samples import NOON, labelled

from pipelines.curate import LabelledSample, draws_of
from pipelines.statistics.certify import certify_threshold
from pipelines.traffic import FEWEST_TRAINING_DRAWS, weighted
from pipelines.types import HeldOutItem, Side

MANY = 10_000  # more than there are


def timed(sample: LabelledSample, number: int) -> LabelledSample:
    return sample._replace(occurred_at=NOON + timedelta(seconds=number))


def held_out(number: int, text: str | None = None, *, pi: float = 0.5) -> LabelledSample:
    text = text or f"held out {number}"
    return timed(labelled(number, text, side=Side.HELD_OUT, group=text, pi=pi), number)


def audit(number: int, text: str | None = None, *, pi: float = 0.5) -> LabelledSample:
    text = text or f"training {number}"
    return timed(labelled(number, text, group=text)._replace(audit_pi=pi), number)


def met(text: str, side: Side = Side.TRAINING, *, days: float = 2.0) -> LabelledSample:
    """Labelled before, for whatever reason."""
    before = labelled(1, text, side=side, group=text)
    return before._replace(occurred_at=NOON - timedelta(days=days))


def audits(count: int, *, first: int = 1_000, pi: float = 0.5) -> list[LabelledSample]:
    """Of texts that came once."""
    return [audit(number, pi=pi) for number in range(first, first + count)]


def items_of(samples: list[LabelledSample]) -> list[HeldOutItem]:
    """The newest held-out draw of each group, as curation chooses it."""
    return list(
        {d.item.group_id: d.item for d in draws_of(samples) if d.side is Side.HELD_OUT}.values()
    )


def weights(samples: list[LabelledSample]) -> dict[str, float]:
    found = weighted(draws_of(samples), items_of(samples), MANY)
    return {item.text: item.weight for item in found}


def test_where_nothing_is_repeated_each_held_out_prompt_counts_as_one() -> None:
    found = weights([held_out(n) for n in range(100)] + audits(400))
    assert found == pytest.approx({f"held out {n}": 1.0 for n in range(100)})


def test_a_prompt_counts_by_its_share_of_the_traffic_on_either_side() -> None:
    samples = [met("often held out", Side.HELD_OUT), met("often in training")]
    samples += [held_out(n) for n in range(60)]
    samples += [held_out(n, "often held out") for n in range(100, 140)]
    samples += [audit(n, "often in training") for n in range(200, 300)] + audits(300)
    found = weights(samples)
    total = sum(found.values())
    assert set(found) == {f"held out {n}" for n in range(60)} | {
        "often held out",
        "often in training",
    }
    assert found["often held out"] / total == pytest.approx(40 / 500)
    assert found["often in training"] / total == pytest.approx(100 / 500)
    # The 60 stand for themselves and for the 300 that are new on the other side.
    assert found["held out 0"] / total == pytest.approx(6 / 500)


def test_no_draw_weighs_more_than_one() -> None:
    samples = [met("often"), *(held_out(n) for n in range(100))]
    samples += [audit(n, "often") for n in range(200, 300)] + audits(100)
    found = weights(samples)  # a held-out draw speaks for one of the other side as well
    assert found.pop("often") == pytest.approx(100 / 2)
    assert found == pytest.approx({f"held out {n}": 1.0 for n in range(100)})


def test_sides_that_were_drawn_at_other_rates_count_as_they_are_in_the_traffic() -> None:
    samples = [met("often"), *(held_out(n, pi=0.5) for n in range(100))]
    samples += [audit(n, "often", pi=0.125) for n in range(200, 300)]
    found = weights(samples)
    assert found["often"] / sum(found.values()) == pytest.approx(800 / 1_000)


def test_what_a_student_learned_tells_nothing_of_what_it_meets_for_the_first_time() -> None:
    """Also where everybody asked it for an hour: the next one is another."""
    samples = [held_out(n) for n in range(50)] + audits(100)
    samples += [audit(n, "the talk of the hour") for n in range(2_000, 2_100)]
    within_the_hour = met("the talk of the hour", days=0.0)._replace(
        occurred_at=NOON + timedelta(seconds=1_950)
    )
    found = weights([within_the_hour, *samples])
    assert found == pytest.approx({f"held out {n}": 1.0 for n in range(50)})
    assert "the talk of the hour" in weights([met("the talk of the hour"), *samples])


def test_texts_with_another_label_are_judged_by_each_of_them() -> None:
    samples = [met("changed"), *(held_out(n) for n in range(50)), *audits(100)]
    samples += [audit(n, "changed") for n in range(200, 230)]
    new = [audit(n, "changed") for n in range(230, 240)]
    samples += [one._replace(example=replace(one.example, label="cancel")) for one in new]
    found = weighted(draws_of(samples), items_of(samples), MANY)
    by_label = {item.label: item.weight for item in found if item.text == "changed"}
    assert by_label["refund"] == pytest.approx(3 * by_label["cancel"])


def test_only_draws_of_the_window_count_and_no_group_that_does_not_judge() -> None:
    samples = [held_out(n) for n in range(50)] + [audit(n, "often") for n in range(200, 260)]
    old = [audit(n, "no longer asked") for n in range(300, 340)]
    early = [one._replace(occurred_at=NOON - timedelta(hours=n + 1)) for n, one in enumerate(old)]
    before = [met("often"), met("no longer asked")]
    items = items_of(samples)[:-1]  # the last one is near a training text
    found = weighted(draws_of([*before, *early, *samples]), items, MANY)
    texts = {item.text for item in found}
    assert "often" in texts
    assert texts.isdisjoint({"no longer asked", "held out 49"})


def test_of_the_training_side_the_newest_are_asked_and_count_for_all() -> None:
    samples = [met("early"), met("late"), *(held_out(n) for n in range(100))]
    samples += [audit(n, "early") for n in range(200, 300)]
    samples += [audit(n, "late") for n in range(300, 400)]
    found = {item.text: item.weight for item in weighted(draws_of(samples), items_of(samples), 100)}
    assert "early" not in found
    assert found["late"] / sum(found.values()) == pytest.approx(200 / 300)


def test_without_audits_of_the_training_side_nothing_is_weighted() -> None:
    samples = [held_out(n) for n in range(50)]
    assert (
        weighted(draws_of(samples + audits(FEWEST_TRAINING_DRAWS - 1)), items_of(samples), 9) == ()
    )
    assert weighted(draws_of(audits(100)), [], 9) == ()


def test_a_promise_is_kept_on_traffic_that_few_prompts_make_up() -> None:
    """A student that is right as often as promised, by prompts; on traffic it is luck."""
    prompts, target, broken, broken_distinct, issued, tries = 3_000, 0.9, 0, 0, 0, 60
    for seed in range(tries):
        generator = np.random.default_rng((21, seed))
        frequency = 1.0 / np.arange(1, prompts + 1)
        frequency /= frequency.sum()
        right = generator.random(prompts) < 0.93
        side = generator.random(prompts) < 0.2
        drawn = generator.choice(prompts, 4_000, p=frequency)
        samples = [
            held_out(at, str(prompt)) if side[prompt] else audit(at, str(prompt))
            for at, prompt in enumerate(drawn)
        ]
        items = items_of(samples)
        by_weight = weighted(draws_of(samples), items, MANY)
        for chosen in (items, by_weight):
            certified = certify_threshold(
                [0.99] * (len(chosen) - 1) + [0.0],  # no edge where all lie above
                [bool(right[int(item.text)]) for item in chosen],
                target=target,
                floor_share=0.0,
                weights=[item.weight for item in chosen],
            )
            kept = float(frequency[right].sum()) >= target
            if certified.value is not None and not kept:
                broken += chosen is by_weight
                broken_distinct += chosen is items
            issued += certified.value is not None and chosen is by_weight
    assert issued > tries / 2
    assert broken <= 0.05 * tries
    assert broken_distinct > broken
