"""A certificate of a time that is over is none: after a fall only what came since counts."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from core_samples import NOON, labelled
from numpy.typing import NDArray
from scipy import stats

from pipelines.curate import LabelledSample, draws_of
from pipelines.evaluate import evaluate
from pipelines.marks import Course, asked_of
from pipelines.statistics.newest import (
    LEVEL,
    Evidence,
    Part,
    as_many_by_chance,
    begins,
    certify_newest,
)
from pipelines.traffic import course_of, weighted
from pipelines.types import Answers, HeldOutItem, Side, Threshold

ITEMS = 2_000
MANY = 10_000
FALLEN = "Agreement has been lower since"


def certified(
    right: NDArray[np.bool_], confidences: NDArray[np.float64] | None = None
) -> Threshold:
    """Of items in the order in which they came."""
    sure = (np.full(right.size, 0.9) if confidences is None else confidences).tolist()
    whole = Evidence(sure, right.tolist())
    parts = [
        Part(before, Evidence(sure[before:], right[before:].tolist()), NOON)
        for before in begins(right.size)
    ]
    return certify_newest(whole, whole, parts, target=0.9, confidence_level=0.95)


def agreeing(generator: np.random.Generator, *shares: tuple[float, int]) -> NDArray[np.bool_]:
    """So often right, on so many items; one stretch after the other."""
    return np.concatenate([generator.random(items) < share for share, items in shares])


@pytest.mark.parametrize(
    "case", [(3, 20, 10, 200), (1, 50, 1, 100), (12, 30, 14, 40), (0, 5, 2, 9)]
)
def test_the_chance_is_the_hypergeometric_one(case: tuple[int, int, int, int]) -> None:
    wrong, drawn, all_wrong, items = case
    expected = stats.hypergeom.sf(wrong - 1, items, all_wrong, drawn)
    assert as_many_by_chance(*case) == pytest.approx(expected)


def test_a_fall_of_yesterday_ends_the_certificate_of_two_months() -> None:
    generator = np.random.default_rng(1)
    for share in (0.0625, 0.125, 0.25):
        fallen = round(ITEMS * share)
        right = agreeing(generator, (0.97, ITEMS - fallen), (0.80, fallen))
        found = certified(right)
        assert found.value is None, share
        assert FALLEN in found.reason


def test_what_is_as_good_as_promised_since_its_fall_is_certified_on_that_alone() -> None:
    right = agreeing(np.random.default_rng(2), (0.99, 1_500), (0.94, 500))
    found = certified(right)
    assert found.value == 0.9
    assert found.agreement_above is not None
    assert found.agreement_above.n < ITEMS / 2
    assert found.agreement_above.value < 0.96, "not the agreement of before"


def test_only_the_surer_answers_are_trusted_where_only_the_others_became_worse() -> None:
    generator = np.random.default_rng(3)
    confidences = np.where(np.arange(ITEMS) % 2 == 0, 0.97, 0.7)
    right = agreeing(generator, (0.98, 1_000), (0.98, 1_000))
    right[1_000:] &= (confidences[1_000:] > 0.9) | (generator.random(1_000) < 0.6)
    assert certified(right[:1_000], confidences[:1_000]).value == 0.7
    assert certified(right, confidences).value == 0.97


def test_a_part_that_could_certify_nothing_takes_nothing_away() -> None:
    """Of 300 items the newest sixteenth are 18: too few for 90 %, were all of them right."""
    right = np.ones(300, dtype=bool)
    right[[285, 290]] = False
    assert 7 * as_many_by_chance(2, 18, 2, 300) <= LEVEL, "it would be taken for a fall"
    found = certified(right)
    assert found.value == 0.9
    assert FALLEN not in found.reason


def test_an_order_that_is_chance_is_taken_for_a_fall_as_rarely_as_is_said() -> None:
    generator = np.random.default_rng(4)
    tries = 1_500
    taken = sum(FALLEN in certified(agreeing(generator, (0.95, 400))).reason for _ in range(tries))
    assert stats.binom.sf(taken - 1, tries, LEVEL) > 1e-3
    assert taken > 0, "it can be"


def test_what_became_better_changes_nothing() -> None:
    right = agreeing(np.random.default_rng(5), (0.93, 1_500), (0.99, 500))
    found = certified(right)
    assert found.agreement_above is not None
    assert found.agreement_above.n == ITEMS
    assert FALLEN not in found.reason


def test_without_times_or_draws_there_are_no_parts() -> None:
    assert begins(0) == ()
    assert begins(3) == (2,)
    assert begins(1_600) == (800, 1_000, 1_200, 1_300, 1_400, 1_450, 1_500)
    item = HeldOutItem(event_id="a", group_id="a", text="a", label="x", segment="s")
    assert course_of((), [item], (), MANY) == Course()


def sample(number: int, text: str, side: Side, at: datetime) -> LabelledSample:
    made = labelled(number, text, side=side, group=text, pi=0.5 if side is Side.HELD_OUT else None)
    audited = made if side is Side.HELD_OUT else made._replace(audit_pi=0.5)
    return audited._replace(occurred_at=at)


def test_the_course_names_each_held_out_draw_and_its_parts_are_the_traffic_since() -> None:
    """Prompts that are repeated count as often as they came, on both sides."""
    samples = []
    for number in range(400):
        at = NOON + timedelta(hours=number)
        samples.append(sample(number, f"held {number % 80}", Side.HELD_OUT, at))
        samples.append(sample(1_000 + number, f"trained {number % 50}", Side.TRAINING, at))
    draws = draws_of(samples)
    items = list({d.item.group_id: d.item for d in draws if d.side is Side.HELD_OUT}.values())
    # As curation has it: of each group its newest draw, so that all are of the last 80 hours.
    traffic = weighted(draws, items, MANY)
    course = course_of(draws, items, traffic, MANY)
    asked = {item.event_id for item in asked_of(items, traffic)}
    assert set(course.order) <= asked
    assert len(course.order) == 80
    for part in course.parts:
        assert {item.event_id for item in part.items} <= asked, "nobody has to answer more"
        assert all(one.occurred_at and one.occurred_at >= part.since for one in part.items)
    assert [part.before for part in course.parts] == list(begins(80))
    assert course.parts[0].weighted


def test_an_evaluation_says_since_when_agreement_is_lower() -> None:
    items = [
        HeldOutItem(
            event_id=f"e-{n}",
            group_id=f"g-{n}",
            text=f"text {n}",
            label="right",
            segment="s",
            occurred_at=NOON + timedelta(hours=n),
        )
        for n in range(600)
    ]
    right = agreeing(np.random.default_rng(6), (0.99, 450), (0.75, 150))
    said = Answers(
        name="candidate",
        labels=tuple("right" if one else "wrong" for one in right),
        confidences=(0.9,) * 600,
    )
    course = course_of((), items, (), MANY)
    before = evaluate(items, said, {}, target=0.9).threshold
    assert before.value == 0.9, "the average of the two months"
    found = evaluate(items, said, {}, target=0.9, course=course).threshold
    assert found.value is None
    assert f"{NOON + timedelta(hours=450):%Y-%m-%d}" in found.reason
