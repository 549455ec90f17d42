"""Causal students behind the gateway: slow, in a process that may die, and nobody notices."""

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from threading import Thread

import httpx2
import msgspec
import openai
import psutil
import pytest
from chat_model_rig import GOLDEN, TinyChatModel, tiny_chat_model
from gateway_rig import (
    TASK,
    LearnerSide,
    Load,
    RunningGateway,
    Students,
    Teacher,
    engine_processes,
    gateway_process,
    publish_live,
    serving,
    settings_for,
    shared_students,
    wait_until,
)

from service.gateway import lease
from service.gateway.learner_client import LearnerClient
from service.keys import open_keys
from service.sections import BudgetSettings
from storage.artifacts import Artifacts

# More tokens than the installed encoder has positions for.
ENDLESS = "parcel " * 1500


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a learner may take longer than an app would wait."""
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 20.0)


@pytest.fixture(scope="module")
def model() -> TinyChatModel:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def heads() -> Students:
    return shared_students()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One for all tests, beside a learner that grants three escalations."""
    folder = tmp_path_factory.mktemp("gateway")
    teacher = Teacher(answer="invoice")
    budget = BudgetSettings(escalation_calls=3, lease_calls=3)
    with (
        serving(teacher.app()) as teacher.port,
        LearnerSide(folder, open_keys(folder), budget).running() as learner,
    ):
        running = RunningGateway(settings_for(folder, teacher, learner={"port": learner.port}))
        yield running
        running.stop()
    assert engine_processes() == []


numbers = count(1)


def test_a_causal_champion_answers_an_openai_client(
    gateway: RunningGateway, model: TinyChatModel
) -> None:
    student = model.publish(gateway.settings.data_dir, next(numbers))
    gateway.serve(student)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
    for text, (label, confidence) in zip(GOLDEN, model.answers("one"), strict=True):
        raw = client.chat.completions.with_raw_response.create(
            model="desk", messages=[{"role": "user", "content": text}]
        )
        completion = raw.parse()
        assert completion.choices[0].message.content == label
        assert completion.model == student.name
        assert completion.usage is not None
        assert completion.usage.prompt_tokens > 0
        told = float(raw.headers["x-flywheel-confidence"])
        assert told == pytest.approx(confidence, abs=1e-3)
    client.close()
    events = [
        {"event_id": str(n), "messages": [{"role": "user", "content": text}]}
        for n, text in enumerate(GOLDEN)
    ]
    assessed = gateway.http.post("/v1/assess", json={"task": TASK, "events": events}).json()
    labels = [answer["label"] for answer in assessed["answers"]]
    assert labels == [label for label, _ in model.answers("one")]


def test_health_and_metrics_answer_at_once_while_the_engine_is_busy(
    gateway: RunningGateway, model: TinyChatModel
) -> None:
    gateway.serve(model.publish(gateway.settings.data_dir, next(numbers)))
    with Load(gateway, clients=6, text=ENDLESS) as load:
        wait_until(lambda: gateway.metric("engine_queue_texts") >= 4)
        seconds = []
        for turn in range(40):
            started = time.perf_counter()
            path = ("/healthz", "/readyz", "/metrics")[turn % 3]
            assert gateway.http.get(path).status_code == 200
            seconds.append(time.perf_counter() - started)
        assert gateway.metric("engine_queue_texts") >= 4  # it was busy all the while
    assert load.failures == []
    assert median(seconds) < 0.1, seconds  # some may have met other processes


def test_a_head_gives_way_to_a_causal_student_and_comes_back(
    gateway: RunningGateway, model: TinyChatModel, heads: Students
) -> None:
    folder = gateway.settings.data_dir
    head = heads.publish(folder, next(numbers))
    causal = model.publish(folder, next(numbers), "two")
    other = model.publish(folder, next(numbers), "one")
    gateway.serve(head)
    wait_until(lambda: engine_processes() == [])
    with Load(gateway, clients=2) as load:
        gateway.serve(causal, head)
        [engine] = engine_processes()
        gateway.serve(other, causal)
        assert engine_processes() == [engine]  # two versions on one base share its process
        gateway.serve(msgspec.structs.replace(causal, decision="a rollback"), other)
        gateway.serve(head, causal)
        assert engine_processes() == [engine]  # kept for a rollback
        gateway.serve(heads.publish(folder, next(numbers), strength=3.0), head)
    # While the chat model was loaded, the head has answered.
    assert load.failures == []
    assert set(load.versions) >= {head.name, causal.name, other.name}
    wait_until(lambda: engine_processes() == [])
    wait_until(lambda: gateway.metric("engines") == 0)


def test_a_causal_student_that_answers_otherwise_is_refused(
    gateway: RunningGateway, model: TinyChatModel, heads: Students
) -> None:
    folder = gateway.settings.data_dir
    head = heads.publish(folder, next(numbers))
    gateway.serve(head)
    golden = [{"text": GOLDEN[0], "label": model.answers("one")[0][0], "confidence": 0.123}]
    gateway.publish(model.publish(folder, next(numbers), golden=golden), head)
    wait_until(lambda: gateway.metric("swaps_total", task=TASK, outcome="golden") == 1)
    assert gateway.chat().headers["x-flywheel-version"] == head.name
    gateway.serve(head)
    wait_until(lambda: engine_processes() == [])


def test_without_the_training_stack_the_refusal_says_what_to_do(
    gateway: RunningGateway,
    model: TinyChatModel,
    heads: Students,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = gateway.settings.data_dir
    head = heads.publish(folder, next(numbers))
    gateway.serve(head)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    gateway.publish(model.publish(folder, next(numbers)), head)
    wait_until(lambda: TASK in gateway.readyz()[1]["failed"])
    refusal = gateway.readyz()[1]["failed"][TASK]
    assert "needs the training stack" in refusal
    assert "make setup" in refusal
    assert gateway.metric("swaps_total", task=TASK, outcome="stack") == 1
    gateway.serve(head)


def test_when_a_student_crashes_the_teacher_answers_and_without_a_lease_an_error_does(
    gateway: RunningGateway,
    model: TinyChatModel,
    heads: Students,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = gateway.settings.data_dir
    # A head that lets the encoder read further than it can.
    gateway.serve(heads.publish(folder, next(numbers), about={"max_tokens": 4000}))
    assert gateway.chat().headers["x-flywheel-served-by"] == "student"
    crashed = gateway.chat(ENDLESS)
    assert crashed.status_code == 200
    assert crashed.headers["x-flywheel-served-by"] == "teacher"
    assert crashed.json()["choices"][0]["message"]["content"] == "invoice"
    assert gateway.metric("student_failures_total", task=TASK, reason="crashed") == 1
    causal = model.publish(folder, next(numbers))
    gateway.serve(causal)
    [engine] = engine_processes()
    engine.kill()
    wait_until(lambda: gateway.metric("engine_failures_total", reason="ended") == 1)
    for _ in range(2):
        assert gateway.chat().headers["x-flywheel-served-by"] == "teacher"
    failed = gateway.chat()  # and three escalations were all
    assert failed.status_code == 503
    error = failed.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "student_failed")
    assert "no escalation is left" in error["message"]
    asked = {"event_id": "1", "messages": [{"role": "user", "content": "a text"}]}
    assessed = gateway.http.post("/v1/assess", json={"task": TASK, "events": [asked]})
    assert assessed.status_code == 503
    assert gateway.metric("student_failures_total", task=TASK, reason="engine") == 4
    # It is away for some seconds only.
    wait_until(lambda: gateway.chat().headers["x-flywheel-served-by"] == "student")
    wait_until(lambda: causal.name in {e.student.version for e in gateway.events() if e.student})
    events = sorted(gateway.events(), key=lambda event: event.occurred_at)
    kept = [event for event in events if event.attributes.get("unsure") == "student_failed"]
    assert [event.served_by for event in kept][:4] == ["teacher", "teacher", "teacher", "app"]
    assert kept[0].teacher_answer == "invoice"
    said = "".join(capfd.readouterr())
    assert said.count("student_failed") == 2  # once a minute for each version
    assert "parcel" not in said


@pytest.fixture
def process(tmp_path: Path, model: TinyChatModel) -> Iterator[subprocess.Popen[str]]:
    """A gateway in a process of its own, that loads a causal student."""
    publish_live(tmp_path, open_keys(tmp_path), model.publish(tmp_path, 1))
    process, url = gateway_process(settings_for(tmp_path))
    wait_until(lambda: engine_processes(process.pid) != [])
    assert httpx2.get(f"{url}/healthz").status_code == 200
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_killed_gateway_leaves_no_engine_behind(
    process: subprocess.Popen[str], hangs: bool
) -> None:
    [engine] = engine_processes(process.pid)
    if hangs:
        time.sleep(1)  # it is past its first lines, and loads
        engine.suspend()
    process.kill()
    wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 30)


def test_a_gateway_that_stops_ends_an_engine_that_hangs(process: subprocess.Popen[str]) -> None:
    [engine] = engine_processes(process.pid)
    engine.suspend()
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "heavy: []" in out
    assert not engine.is_running()


def test_a_chat_model_is_fetched_through_the_disk(tmp_path: Path) -> None:
    """Hundreds of megabytes, of which hardly any is in memory at once."""
    megabytes = 300
    keys = open_keys(tmp_path / "learner", "one-shared-secret-for-this-test")
    scratch = tmp_path / "learner" / "scratch-model"
    scratch.mkdir(parents=True)
    with (scratch / "model.safetensors").open("wb") as file:
        file.truncate(megabytes << 20)
    published = Artifacts(tmp_path / "learner" / "artifacts").publish("chat_model", scratch, {})
    here = Artifacts(tmp_path / "gateway" / "artifacts")
    with LearnerSide(tmp_path / "learner", keys, BudgetSettings()).running() as learner:
        client = LearnerClient(lambda: f"http://127.0.0.1:{learner.port}", keys.internal)
        fetched = Thread(
            target=client.fetch, args=("chat_model", published.digest, here, tmp_path / "fetched")
        )
        this = psutil.Process()
        before = most = this.memory_info().rss
        fetched.start()
        while fetched.is_alive():
            most = max(most, this.memory_info().rss)
            time.sleep(0.01)
        client.close()
    assert here.exists("chat_model", published.digest)
    assert most - before < megabytes / 3 * 2**20
