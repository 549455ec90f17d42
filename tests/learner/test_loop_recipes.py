"""The whole loop over a real Kafka broker with tuned students: an encoder and a chat model."""

import random
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import psutil
import pytest

from benchmarks.loop import BANKING77, TASK, Loop, LoopPlan, read_queries, running_loop
from pipelines.errors import TrainingStackMissing
from pipelines.students.bases import require_training_stack

# Of these intents the names alone tell little: the untrained encoder is right on 64 % of them.
SEED = 2
TESTED = 30
ASKED = 10
NEVER = 10**6  # labels: trains when it is asked to, and only then


def slice_plan(recipe: str, intents: int, sent: int, more_settings: str) -> LoopPlan:
    """Some intents and a few hundred queries."""
    stream = read_queries(BANKING77 / "train.csv")
    chosen = set(random.Random(SEED).sample(sorted({query.gold for query in stream}), intents))
    kept = [query for query in stream if query.gold in chosen]
    test = [query for query in read_queries(BANKING77 / "test.csv") if query.gold in chosen]
    random.Random(SEED).shuffle(kept)
    random.Random(SEED).shuffle(test)
    return LoopPlan(
        stream=tuple(kept[:sent]),
        test=tuple(test[:TESTED]),
        first_training_labels=NEVER,
        min_groups=40,
        target=0.7,
        recipe=recipe,
        assess_batch=5,
        more_settings=more_settings,
    )


def ask(loop: Loop, text: str) -> Any:
    """An unmodified OpenAI client: nothing in it knows of us but the base URL."""
    with openai.OpenAI(base_url=f"{loop.gateway}/v1", api_key="any", max_retries=0) as client:
        return client.chat.completions.with_raw_response.create(
            model=TASK, messages=[{"role": "user", "content": text}]
        )


def kill_trainer_at_checkpoint(loop: Loop, killed: list[int]) -> None:
    """`kill -9` for the trainer, once it has something to go on from."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        if list(loop.running.data.glob(f"checkpoints/{TASK}/*/checkpoint.safetensors")):
            learner = psutil.Process(loop.running.pid("learner"))
            for child in learner.children():
                if "pipelines.train" in child.cmdline():
                    killed.append(child.pid)
                    child.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.1)


def check_that_it_serves(loop: Loop, plan: LoopPlan, least_accuracy: float) -> None:
    points = loop.run()
    assert len(points) == 1, "the gate let no student through, or more than one"
    assert points[0].accuracy > least_accuracy
    replies = [ask(loop, query.text) for query in plan.test[:ASKED]]
    by_student = [r for r in replies if r.headers["x-flywheel-served-by"] == "student"]
    assert by_student, "everything escalated"
    assert {r.headers["x-flywheel-version"] for r in by_student} == {points[0].version}
    assert all(r.parse().choices[0].message.content in plan.labels for r in by_student)


@pytest.fixture
def training_stack() -> None:
    try:
        require_training_stack()
    except TrainingStackMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not BANKING77.is_dir(), reason="needs the banking77 folder")
@pytest.mark.usefixtures("training_stack")
def test_a_tuned_encoder_goes_the_whole_way(kafka_broker: Any, tmp_path: Path) -> None:
    plan = slice_plan("encoder-lora", 8, 400, "[recipes.encoder-lora]\nepochs = 3\n")
    with running_loop(plan, tmp_path, kafka_broker.bootstrap_servers) as loop:
        check_that_it_serves(loop, plan, 0.8)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not BANKING77.is_dir(), reason="needs the banking77 folder")
@pytest.mark.usefixtures("training_stack")
def test_a_chat_model_goes_the_whole_way_though_its_trainer_is_killed(
    kafka_broker: Any, tmp_path: Path
) -> None:
    plan = slice_plan("causal-lora", 5, 300, "[recipes.causal-lora]\nepochs = 2\n")
    killed: list[int] = []
    with running_loop(plan, tmp_path, kafka_broker.bootstrap_servers) as loop:
        killer = Thread(target=kill_trainer_at_checkpoint, args=(loop, killed))
        killer.start()
        # The base model used directly has about half of the labels right.
        check_that_it_serves(loop, plan, 0.6)
        killer.join()
        log = loop.running.log.read_text()
    assert killed, "no trainer was killed"
    assert "training_resumed" in log
