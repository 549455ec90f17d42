"""A killed trainer under traffic: the run has failed, and the gateway answers throughout.

The other processes are killed in tests/faults/test_chaos.py.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import psutil
import pytest

from benchmarks.running import Running, running_service, scripted_teacher
from service.demo.corpus import load_corpus
from service.demo.traffic import Traffic

RATE = 25.0
SETTINGS = """
[gateway]
port = 0

[learner]
port = 0

[teacher]
base_url = "{teacher}"
model = "scripted-teacher"
terms = "scripted"
terms_allow_training = true

[budget]
label_calls = 100000
label_tokens = 100000000

[sampling]
held_out_rate = 1.0

[trigger]
min_labels = {min_labels}
min_interval = "0s"

[gate]
min_groups = 30

[schedule]
relabel = "every 1s"
watch = "every 1s"
evaluate = "every 2s"

[tasks.{task}]
models = ["{task}"]
target = 0.8
labels = {labels}
"""


class Customers:
    """Asks at a steady rate and keeps its own log of what was answered."""

    def __init__(self, gateway: str, task: str) -> None:
        self._url = f"{gateway}/v1/chat/completions"
        self._task = task
        self._stop = Event()
        self.answered: list[str] = []
        self.refused: list[str] = []
        self.versions: set[str] = set()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Customers":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        traffic, index = Traffic(3), 0
        with httpx2.Client(timeout=30) as client:
            while not self._stop.wait(1 / RATE):
                text = traffic.message(index, new_intent_share=0.0).text
                index += 1
                body = {"model": self._task, "messages": [{"role": "user", "content": text}]}
                try:
                    reply = client.post(self._url, json=body)
                except httpx2.HTTPError as error:
                    self.refused.append(repr(error))
                    continue
                if reply.status_code == 200:
                    self.answered.append(reply.headers["x-flywheel-event-id"])
                    self.versions.add(reply.headers["x-flywheel-version"])
                else:
                    self.refused.append(f"{reply.status_code} {reply.text[:200]}")


def wait_for(what: str, found: Callable[[], Any], seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if result := found():
                return result
        except Exception as error:  # the learner is being killed: it may not answer
            last = repr(error)
        else:
            last = "nothing yet"
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen in {seconds} s: {last}")


def has_answered(customers: Customers, count: int) -> bool:
    return len(customers.answered) >= count


def trainer_of(running: Running) -> psutil.Process | None:
    for child in psutil.Process(running.pid("learner")).children(recursive=True):
        if "pipelines.train" in " ".join(child.cmdline()):
            return child
    return None


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[[int], Running]]:
    """Starts the service with a scripted teacher; both end with the test."""
    corpus = load_corpus()
    labels = "[" + ", ".join(f'"{label}"' for label in corpus.labels) + "]"
    with ExitStack() as stack:

        def start(min_labels: int) -> Running:
            teacher = stack.enter_context(scripted_teacher())
            settings = SETTINGS.format(
                teacher=teacher, task=corpus.task, labels=labels, min_labels=min_labels
            )
            return stack.enter_context(running_service(tmp_path, settings))

        yield start


@pytest.mark.timeout(1800)
def test_a_killed_trainer_is_a_failed_run_and_the_champion_serves_on(
    rig: Callable[[int], Running],
) -> None:
    running = rig(200)
    task = load_corpus().task
    with Customers(running.gateway, task) as customers:
        wait_for("a trainer", lambda: trainer_of(running)).kill()
        run = wait_for(
            "the failed run",
            lambda: (running.client.get("status")["tasks"][0]["last_run"] or {}).get("failure"),
        )
        assert "SIGKILL" in run

        running.client.post("tasks", task, "train")  # an operator does not wait for the back-off
        waiting = wait_for(
            "a version that waits", lambda: running.client.get("status")["tasks"][0]["waiting"]
        )
        running.client.post(
            "tasks",
            task,
            "versions",
            str(waiting["number"]),
            "approve",
            body={"report": waiting["report"], "serves_nothing": True},
        )
        wait_for("the student's answers", lambda: waiting["name"] in customers.versions)

        running.client.post("tasks", task, "train")
        wait_for("another trainer", lambda: trainer_of(running)).kill()
        seen = len(customers.answered)
        wait_for("further answers", partial(has_answered, customers, seen + 30))
    assert customers.refused == []
    assert running.client.get("status")["tasks"][0]["champion"]["name"] == waiting["name"]
