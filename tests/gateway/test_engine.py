"""Engines: a real process for each chat model, which may die or hang and takes nobody with it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from chat_model_rig import ADAPTERS, GOLDEN, ROOT, TinyChatModel, tiny_chat_model
from gateway_rig import wait_until
from prometheus_client import CollectorRegistry

from pipelines.errors import ArtifactDamaged
from pipelines.students.causal import CausalConfig, CausalReply
from service.gateway.engines.base import EngineBusy, EngineFailed
from service.gateway.engines.keeper import EngineLimits
from service.gateway.engines.local import LocalEngine
from service.gateway.student import StudentReply
from service.gateway.students import CausalStudent
from service.metrics.gateway import GatewayMetrics

SECRET = "sk-nobody-may-know-this"
PRIVATE = "my card number is 4444 and it is private"

# A gateway's part, in a process that can be killed.
PARENT = """
import asyncio, sys, threading
from pathlib import Path
from prometheus_client import CollectorRegistry
from service.gateway.engines.local import LocalEngine
from service.metrics.gateway import GatewayMetrics

base, adapter, text = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
engine = LocalEngine("d" * 64, lambda: base, GatewayMetrics(CollectorRegistry()), threads=1)
threading.Thread(target=engine.load, args=("one", lambda: adapter)).start()
while engine.pid is None:
    pass
print(engine.pid, flush=True)
engine.load("two", lambda: adapter)
for wrong in (text, [text]):  # the second is none
    try:
        print(engine.read("one", [wrong])[0].label)
    except RuntimeError as error:
        print(error)
print("busy", flush=True)
while True:
    engine.read("two", [text * 400])
"""


class Rig:
    """An engine with both adapters, that comes back after each test."""

    def __init__(self, model: TinyChatModel) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self.limits = EngineLimits(read_seconds=4.0, first_pause=0.1)
        self.engine = LocalEngine(
            "d" * 64,
            lambda: model.base,
            GatewayMetrics(self.registry),
            threads=1,
            limits=self.limits,
        )

    def load(self) -> None:
        for name in ADAPTERS:
            self.engine.load(name, partial(self.model.adapter, name))

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"flywheel_gateway_{name}", labels) or 0.0

    def answers(self, name: str) -> list[tuple[str, float]]:
        return asyncio.run(self._answers(name))

    async def _answers(self, name: str) -> list[tuple[str, float]]:
        replies = await asyncio.gather(*(self.engine.answer(text, name) for text in GOLDEN))
        return [(reply.label, reply.confidence) for reply in replies]

    def stop(self, number: int) -> None:
        """Send a signal to the process."""
        pid = self.engine.pid
        assert pid is not None
        os.kill(pid, number)

    def pending(self, number: int) -> list[CausalReply | BaseException]:
        """What becomes of requests that wait while the process gets the signal."""

        async def ask() -> list[CausalReply | BaseException]:
            self.stop(signal.SIGSTOP)
            asked = [asyncio.ensure_future(self.engine.answer(t, "one")) for t in GOLDEN]
            await asyncio.sleep(0.1)
            self.stop(number)
            return await asyncio.gather(*asked, return_exceptions=True)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def model() -> TinyChatModel:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def started(model: TinyChatModel) -> Iterator[Rig]:
    rig = Rig(model)
    rig.load()
    yield rig
    rig.engine.close()
    assert rig.engine.pid is None
    assert rig.metric("engines") == 0


@pytest.fixture
def rig(started: Rig) -> Rig:
    wait_until(lambda: started.metric("engines") == 1)
    return started


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def close_to(answers: list[tuple[str, float]]) -> list[tuple[str, Any]]:
    return [(label, pytest.approx(confidence, abs=1e-5)) for label, confidence in answers]


def test_two_adapters_on_one_base_answer_as_the_chat_model_does(rig: Rig) -> None:
    async def both() -> list[list[tuple[str, float]]]:
        return list(await asyncio.gather(*(rig._answers(name) for name in ADAPTERS)))

    one, two = asyncio.run(both())
    assert one == close_to(rig.model.answers("one"))
    assert two == close_to(rig.model.answers("two"))
    assert one != two
    replies = rig.engine.read("one", GOLDEN[:2])
    assert [(r.label, r.confidence) for r in replies] == close_to(rig.model.answers("one")[:2])
    assert replies[0].tokens > 0
    assert not replies[0].truncated


def test_apps_go_before_those_that_wait_patiently(rig: Rig) -> None:
    order: list[str] = []

    async def ask(kind: str) -> None:
        await rig.engine.answer(GOLDEN[0], "one", patient=kind == "patient")
        order.append(kind)

    async def all_of_them() -> None:
        await asyncio.gather(*(ask("patient") for _ in range(30)), *(ask("app") for _ in range(5)))

    asyncio.run(all_of_them())
    # One of the patient ones may have been under way.
    assert order.index("app") <= 2
    assert "app" not in order[8:]


def test_whoever_finds_too_many_waiting_is_told_at_once(rig: Rig) -> None:
    async def ask() -> list[CausalReply | BaseException]:
        asked = (rig.engine.answer(GOLDEN[0], "one") for _ in range(rig.limits.waiting + 5))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    found = asyncio.run(ask())
    assert sum(isinstance(one, EngineBusy) for one in found) == 5
    assert sum(isinstance(one, CausalReply) for one in found) == rig.limits.waiting


def test_a_request_that_fails_takes_nobody_with_it(rig: Rig, tmp_path: Path) -> None:
    pid = rig.engine.pid
    with pytest.raises(RuntimeError, match="in the chat model"):
        asyncio.run(rig.engine.answer("a text", "nobody"))
    damaged = tmp_path / "damaged"
    shutil.copytree(rig.model.adapter("one"), damaged)
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArtifactDamaged):
        rig.engine.load("damaged", lambda: damaged)

    def refuses() -> Path:
        raise ArtifactDamaged("it is not what was published")

    with pytest.raises(ArtifactDamaged, match="published"):
        rig.engine.load("refused", refuses)
    assert rig.answers("two") == close_to(rig.model.answers("two"))
    assert rig.engine.pid == pid


def test_adapters_that_nobody_wants_are_forgotten(rig: Rig) -> None:
    rig.engine.load("three", lambda: rig.model.adapter("one"))
    rig.engine.unload("three")
    with pytest.raises(RuntimeError):
        asyncio.run(rig.engine.answer("a text", "three"))
    assert rig.answers("one") == close_to(rig.model.answers("one"))


def test_what_pends_fails_when_the_process_hangs(rig: Rig) -> None:
    pid = rig.engine.pid
    assert pid is not None
    found = rig.pending(signal.SIGSTOP)
    assert rig.metric("engines") == 0, "they waited until it was back"
    assert all(isinstance(one, EngineFailed) for one in found), found
    assert gone(pid)
    assert rig.metric("engine_failures_total", reason="hung") == 1


def test_a_killed_process_comes_back_with_all_its_adapters(rig: Rig) -> None:
    pid = rig.engine.pid
    found = rig.pending(signal.SIGKILL)
    assert all(isinstance(one, EngineFailed) for one in found), found
    with pytest.raises(EngineFailed):  # meanwhile nobody waits
        asyncio.run(rig.engine.answer("a text", "one"))
    assert rig.metric("engines") == 0, "they waited until it was back"
    wait_until(lambda: rig.metric("engines") == 1)
    assert rig.engine.pid != pid
    assert rig.answers("one") == close_to(rig.model.answers("one"))
    assert rig.answers("two") == close_to(rig.model.answers("two"))
    assert rig.metric("engine_failures_total", reason="ended") == 1
    assert rig.metric("engine_queue_texts") == 0


def test_a_killed_parent_leaves_no_process_and_no_prompt_behind(model: TinyChatModel) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model.base), str(model.adapter("one")), PRIVATE],
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": SECRET, "FLYWHEEL_TEACHER__API_KEY": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        engine = int(process.stdout.readline())
        environment = psutil.Process(engine).environ()
        said: list[str] = []
        while not said or "busy" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], said
        time.sleep(0.2)  # in the middle of a text
        assert not gone(engine)
    finally:
        process.kill()
        rest = process.communicate()[0]
    wait_until(lambda: gone(engine), 30)
    assert SECRET not in json.dumps(environment)
    assert not any(name.startswith("FLYWHEEL_") for name in environment)
    # One request was answered and one has failed; neither is quoted.
    assert sum("in the chat model" in line for line in said) == 1, said
    assert PRIVATE not in "".join([*said, rest])


def test_a_chat_model_that_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    engine = LocalEngine("d" * 64, lambda: tmp_path, GatewayMetrics(CollectorRegistry()), threads=1)
    with pytest.raises(EngineFailed, match="the chat model cannot be loaded"):
        engine.load("one", lambda: tmp_path)
    engine.close()


class Elsewhere:
    """An engine that is no process of this host: all that it must have is the protocol."""

    def __init__(self) -> None:
        self.loaded: dict[str, Path] = {}

    def load(self, name: str, folder: Callable[[], Path]) -> None:
        self.loaded[name] = folder()

    def unload(self, name: str) -> None:
        del self.loaded[name]

    def read(self, name: str, texts: Sequence[str]) -> list[CausalReply]:
        return [CausalReply(self.loaded[name].name, 0.9, len(text), False) for text in texts]

    async def answer(self, text: str, name: str, *, patient: bool = False) -> CausalReply:
        return self.read(name, [text])[0]

    def close(self) -> None:
        self.loaded.clear()


def test_a_causal_student_reads_with_any_engine_and_is_forgotten_by_it() -> None:
    engine = Elsewhere()
    config = CausalConfig(
        labels=("refund", "delivery"),
        instructions="",
        temperature=1.0,
        max_tokens=64,
        chat_model="d" * 64,
        task="support",
    )
    student = CausalStudent(config, engine, "one", lambda: Path("refund"))
    assert student.labels == ("refund", "delivery")
    assert [answer.label for answer in student.answer_now(["a", "b"])] == ["refund", "refund"]
    assert asyncio.run(student.answer("text")) == StudentReply("refund", 0.9, 4, False)
    del student
    assert engine.loaded == {}
