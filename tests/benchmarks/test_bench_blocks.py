"""The loop in virtual time: a first student comes soon, and new topics are asked about."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from benchmarks.blocks.__main__ import figures_of, labels_to_recover
from benchmarks.blocks.virtual import Served, virtual_learner
from benchmarks.recipes.points import Query
from service.demo.corpus import load_corpus
from service.demo.traffic import DemoMessage, Traffic

TASK = "desk"
STEP = 10  # prompts, one a second


def desk(count: int, chosen: Callable[[DemoMessage], bool] = lambda message: True) -> list[Query]:
    traffic, index = Traffic(7), 0
    found: list[Query] = []
    while len(found) < count:
        message = traffic.message(index, new_intent_share=0.0)
        index += 1
        if chosen(message):
            found.append(Query(message.text, message.intent))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_first_student_waits_within_2500_prompts_of_the_desk(tmp_path: Path) -> None:
    """Default settings, also the target of 97 %."""
    labels = sorted(load_corpus().labels)
    made = virtual_learner(tmp_path, TASK, desk(2_500), labels, target=0.97)
    with made as (learner, prompts):
        learner.approves = False
        for number, prompt in enumerate(prompts):
            learner.capture(TASK, number, prompt)
            if number % STEP == STEP - 1:
                learner.pass_time(timedelta(seconds=STEP))
                if learner.waiting(TASK) is not None:
                    break
        assert learner.waiting(TASK) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_topics_that_came_later_are_asked_about_without_a_label(tmp_path: Path) -> None:
    """Half of the intents, until a student serves; then the other half, and nobody learns."""
    intents = sorted(load_corpus().labels)
    known = set(intents[::2])
    first = desk(1_200, lambda message: message.intent in known)
    later = desk(400, lambda message: message.intent not in known)
    made = virtual_learner(tmp_path, TASK, [*first, *later], intents, target=0.9)
    with made as (learner, prompts):
        lived: list[Served] = []
        for number, prompt in enumerate(prompts):
            if number == len(first):
                learner.stop_labels()
            lived.append(learner.capture(TASK, number, prompt))
            if number % STEP == STEP - 1:
                learner.pass_time(timedelta(seconds=STEP))
    before = lived[len(first) - 200 : len(first)]
    assert sum(one.alone for one in before) > 100, "it served what it knows"
    after = lived[len(first) :]
    assert not any(one.right for one in after), "it cannot know them"
    assert sum(one.alone for one in after) <= 0.25 * len(after)
    assert sum(one.alone for one in after[200:]) <= 0.1 * len(after[200:]), "the mix was noticed"


def test_figures_are_counted_over_what_was_served() -> None:
    lived = [Served("", False, False)] * 500 + [Served("v", True, False)] * 100
    lived += [Served("v", True, True)] * 400
    figures = figures_of(lived, [0] * 500 + [1] * 500)
    assert figures["wrong_served"] == 0.1
    assert figures["wrong_served_worst_500"] == 0.2
    assert figures["wrong_of_served_alone"] == 0.2
    assert figures["teacher_share"] == 0.5


def test_a_block_has_recovered_when_as_much_is_trusted_as_before() -> None:
    alone = np.concatenate([np.zeros(400), np.ones(200), np.zeros(150), np.ones(250)])
    blocks = np.array([0] * 200 + [1] * 400 + [2] * 400)
    (labels,) = labels_to_recover(alone.astype(bool), blocks)
    assert labels == 150, "those of the hundred prompts in which nearly all was trusted count too"
