"""How many more items are said to help do help, and where none would, that is said."""

import numpy as np
import pytest
from simulated_pairs import held_out_items

from pipelines.decide import would_serve_nothing
from pipelines.evaluate import evaluate
from pipelines.statistics.certify import certify_threshold
from pipelines.statistics.outlook import items_until_certified
from pipelines.types import Answers


def student(
    generator: np.random.Generator, items: int, surest: float, others: float
) -> tuple[list[float], list[bool]]:
    """A third of the answers are sure, and right as often as `surest`; the others `others`."""
    sure = np.arange(items) % 3 == 0
    right = generator.random(items) < np.where(sure, surest, others)
    return np.where(sure, 0.99, 0.6).tolist(), right.tolist()


def test_so_many_items_certify_what_fewer_did_not() -> None:
    generator = np.random.default_rng(2)
    few, asked, certified = 0, [], 0
    for _ in range(40):
        confidences, right = student(generator, 300, 0.99, 0.8)
        if certify_threshold(confidences, right, target=0.97).value is not None:
            few += 1
            continue
        needed = items_until_certified(confidences, right, target=0.97)
        if needed:
            asked.append(needed)
            more = student(generator, needed, 0.99, 0.8)
            certified += certify_threshold(*more, target=0.97).value is not None
    assert few < 25
    assert len(asked) >= 12
    assert min(asked) > 300
    assert certified / len(asked) > 0.7


def test_where_the_surest_answers_disagree_too_often_no_number_helps() -> None:
    confidences, right = student(np.random.default_rng(1), 900, 0.93, 0.8)
    assert items_until_certified(confidences, right, target=0.97) == 0
    assert items_until_certified([], [], target=0.97) == 3 * 99


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ("+" * 20, "; about 277 more held-out prompts may change that."),
        ("-" * 20, "; more held-out prompts alone will hardly change that: "),
    ],
)
def test_a_student_without_a_threshold_is_told_what_it_lacks(marks: str, words: str) -> None:
    labels = tuple("right" if mark == "+" else "wrong" for mark in marks)
    given = Answers(name="new", labels=labels, confidences=(0.9,) * 20)
    found = evaluate(held_out_items(20), given, {}, target=0.97)
    said = would_serve_nothing(found)
    assert said.startswith("It would answer nothing by itself: every request still goes to the")
    assert words in said


def test_a_student_with_a_threshold_is_told_nothing_of_the_kind() -> None:
    given = Answers(name="new", labels=("right",) * 200, confidences=(0.9,) * 200)
    found = evaluate(held_out_items(200), given, {}, target=0.97)
    assert found.items_until_certified is None
    assert would_serve_nothing(found) == ""
