"""What a student has never seen is asked about: each defence alone, with the others off.

Half of the desk's topics until a student serves, then the other half. No student of the first half
can know these: whatever it answers alone is wrong.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.blocks.virtual import (
    Clock,
    Defences,
    Prompt,
    Served,
    VirtualLearner,
    prepared,
)
from benchmarks.recipes.points import Query
from service.demo.corpus import load_corpus
from service.demo.traffic import Traffic
from service.settings import Settings

TASK = "desk"
STEP = 20  # prompts, one a second, between two looks at what is due
MOST = 1_200  # prompts until a first student serves
SERVED = 60  # prompts that it is seen with
SOON = 400  # prompts until a successor serves; 220 are usual
LATER = SOON + 100
NONE = Defences(certificate=False, mix=False, novelty=False)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class First(NamedTuple):
    """A student of the first topics serves; its learner has stopped, its teacher is there."""

    settings: Settings
    at: datetime
    begin: int  # prompts that there were until then
    later: list[Prompt]  # of the other topics


def desk(count: int, topics: set[str]) -> list[Query]:
    found: list[Query] = []
    traffic, index = Traffic(7), 0
    while len(found) < count:
        message = traffic.message(index, new_intent_share=0.0)
        index += 1
        if message.intent in topics:
            found.append(Query(message.text, message.intent))
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[First]:
    topics = sorted(load_corpus().labels)
    queries = [*desk(MOST, set(topics[::2])), *desk(LATER, set(topics[1::2]))]
    folder = tmp_path_factory.mktemp("first")
    with prepared(folder, TASK, queries, topics, target=0.9) as (settings, prompts):
        with closing(VirtualLearner(settings, Clock())) as learner:
            lived: list[Served] = []
            while not (len(lived) > SERVED and lived[-SERVED].version):
                lived += live(learner, prompts[len(lived) : len(lived) + STEP], len(lived))
            at = learner.now()
        assert sum(one.alone and one.right for one in lived[-SERVED:]) > SERVED / 2
        yield First(settings, at, len(lived), prompts[MOST:])


@contextmanager
def continued(
    first: First, folder: Path, defences: Defences, *, labels: bool = False, **other: Any
) -> Iterator[VirtualLearner]:
    """A copy of that learner, with these defences only; `labels`: it may go on learning."""
    shutil.copytree(first.settings.data_dir, folder / "data")
    settings = first.settings.model_copy(update={"data_dir": folder / "data", **other})
    with closing(VirtualLearner(settings, Clock(first.at))) as learner:
        learner.defences = defences
        if not labels:
            learner.stop_labels()
        yield learner


def live(
    learner: VirtualLearner, prompts: Sequence[Prompt], begin: int, seconds: int = 1
) -> list[Served]:
    """A prompt every so many seconds."""
    lived = []
    for number, prompt in enumerate(prompts, start=begin):
        lived.append(learner.capture(TASK, number, prompt))
        if number % STEP == STEP - 1:
            learner.pass_time(timedelta(seconds=seconds * STEP))
    return lived


def alone(lived: Sequence[Served]) -> float:
    assert not any(one.right for one in lived), "it cannot know them"
    return sum(one.alone for one in lived) / len(lived)


def test_without_any_defence_all_that_is_new_is_answered_wrongly(
    first: First, tmp_path: Path
) -> None:
    with continued(first, tmp_path, NONE) as learner:
        assert alone(live(learner, first.later[:100], first.begin)) == 1.0


def test_a_certificate_that_reaches_as_low_as_its_evidence_holds_back_half_alone(
    first: First, tmp_path: Path
) -> None:
    with continued(first, tmp_path, NONE._replace(certificate=True)) as learner:
        assert alone(live(learner, first.later[:200], first.begin)) <= 0.6


def test_the_watched_mix_notices_a_hundred_new_prompts_alone(first: First, tmp_path: Path) -> None:
    with continued(first, tmp_path, NONE._replace(mix=True)) as learner:
        lived = live(learner, first.later[:250], first.begin)
        assert alone(lived[150:]) <= 0.1


def test_novelty_while_serving_holds_back_half_from_the_first_prompt_on_alone(
    first: First, tmp_path: Path
) -> None:
    with continued(first, tmp_path, NONE._replace(novelty=True)) as learner:
        assert alone(live(learner, first.later[:100], first.begin)) <= 0.55


def test_an_interval_that_says_nothing_is_never_consistent(first: First, tmp_path: Path) -> None:
    """A first audit has its label: the interval is as good as none."""
    audited = {"budget": first.settings.budget.model_copy(update={"label_calls": 20_000})}
    with continued(first, tmp_path, NONE, labels=True, **audited) as learner:
        for at in range(0, 240, STEP):
            live(learner, first.later[at : at + STEP], first.begin + at)
            learner.forget_guards(TASK)
            (status,) = learner.status().tasks
            if found := status.figures.served_agreement:
                break
        assert found is not None
        assert found.low < 0.9 <= found.high
        assert "consistent" not in status.quality
        assert status.quality.startswith("Nobody knows yet")
        assert "at least 29" in status.quality, "what it takes to know"


def test_a_student_who_has_to_answer_all_has_a_successor_that_knows_the_new_topics(
    first: First, tmp_path: Path
) -> None:
    """Nothing is held back, and no label comes but by the draws. A prompt every four seconds."""
    with continued(first, tmp_path, Defences(forced=True), labels=True) as learner:
        lived: list[Served] = []
        while len(lived) < SOON and not (lived and lived[-1].version != lived[0].version):
            part = first.later[len(lived) : len(lived) + STEP]
            lived += live(learner, part, first.begin + len(lived), seconds=4)
        assert lived[-1].version != lived[0].version
        after = live(learner, first.later[len(lived) :][:100], first.begin + len(lived), seconds=4)
        assert sum(one.right for one in after) >= 0.6 * len(after)
