"""Capture, feedback, assessment, and what survives the end of a gateway."""

import os
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx2
import msgspec
import pytest
from gateway_rig import (
    ALL_LABELS,
    ALL_TEXTS,
    TOPIC_FILE,
    RunningGateway,
    Students,
    Teacher,
    captured,
    gateway_process,
    publish_live,
    serving,
    settings_for,
    shared_students,
    topic_records,
    wait_until,
)
from prometheus_client import CollectorRegistry

from benchmarks.chaos.witnesses import Worker
from pipelines.errors import BrokerUnavailable, ExitCode, PortInUse
from pipelines.records.native import NativeRecord
from pipelines.types import Headers, Message
from service.gateway.app import run_gateway
from service.gateway.capture import Capture
from service.gateway.recent import Recent
from service.keys import open_keys
from service.metrics.gateway import GatewayMetrics
from service.topics.embedded import EmbeddedTopicWriter

PIXELS = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture
def gateway(tmp_path: Path, students: Students) -> Iterator[RunningGateway]:
    running = RunningGateway(settings_for(tmp_path))
    running.serve(students.publish(tmp_path, 1))
    yield running
    running.stop()


def test_every_answer_is_captured_once(gateway: RunningGateway) -> None:
    ids = [gateway.chat(text).headers["x-flywheel-event-id"] for text in ALL_TEXTS]
    wait_until(lambda: len(gateway.events()) >= len(ids))
    assert [event.event_id for event in gateway.events()] == ids
    assert [event.messages[0].content for event in gateway.events()] == list(ALL_TEXTS)
    assert gateway.metric("captured_total") == len(ids)


def test_feedback_by_id_alone_becomes_a_signed_event(gateway: RunningGateway) -> None:
    answer = gateway.chat("where is my parcel", user="anna").json()
    given = {"id": answer["id"], "verdict": "bad", "correction": "refund"}
    assert gateway.http.post("/v1/feedback", json=given).status_code == 202
    assert gateway.http.post("/v1/feedback", json={**given, "verdict": "good"}).status_code == 202
    wait_until(lambda: len(gateway.events()) == 3)
    first, judged, again = gateway.events()
    assert judged.event_id == f"{first.event_id}:feedback:1"
    assert again.event_id == f"{first.event_id}:feedback:2"
    assert judged.attributes["feedback_on"] == first.event_id
    assert judged.feedback is not None
    assert judged.feedback.correction == "refund"
    assert judged.messages == first.messages
    assert judged.student == first.student
    assert judged.user_key == first.user_key


def test_feedback_that_cannot_be_used_is_refused_with_a_sentence(gateway: RunningGateway) -> None:
    answer = gateway.chat().json()

    def give(**body: object) -> httpx2.Response:
        return gateway.http.post("/v1/feedback", json=body)

    assert give(id=answer["id"], verdict="bad", correction="nonsense").status_code == 400
    assert give(id=answer["id"], verdict="so-so").status_code == 400
    forgotten = give(id="chatcmpl-long-gone", verdict="bad")
    assert forgotten.status_code == 404
    assert "not remembered" in forgotten.json()["error"]["message"]
    messages = [{"role": "user", "content": "my bill"}]
    told = give(
        id="chatcmpl-long-gone",
        verdict="bad",
        correction="invoice",
        messages=messages,
        model="desk",
    )
    assert told.status_code == 202
    wait_until(lambda: len(gateway.events()) == 2)
    assert gateway.events()[1].attributes["feedback_on"] == "long-gone"
    assert give(id="x", verdict="bad", messages=messages, model="unknown").status_code == 404


def test_feedback_on_a_teachers_answer_finds_it_by_the_teachers_id(tmp_path: Path) -> None:
    teacher = Teacher()
    with serving(teacher.app()) as port:
        teacher.port = port
        gateway = RunningGateway(settings_for(tmp_path, teacher))
        answer = gateway.chat()
        given = {"id": answer.json()["id"], "verdict": "good"}
        response = gateway.http.post("/v1/feedback", json=given)
        event_id = answer.headers["x-flywheel-event-id"]
        assert response.json()["event_id"] == f"{event_id}:feedback:1"
        gateway.stop()


def test_assessment_answers_in_order_and_captures_nothing(gateway: RunningGateway) -> None:
    events = [
        {"event_id": f"e{n}", "messages": [{"role": "user", "content": text}]}
        for n, text in enumerate(ALL_TEXTS)
    ]
    reply = gateway.http.post("/v1/assess", json={"task": "support", "events": events}).json()
    assert reply["version"] == gateway.chat().headers["x-flywheel-version"]
    assert [answer["event_id"] for answer in reply["answers"]] == [e["event_id"] for e in events]
    assert tuple(answer["label"] for answer in reply["answers"]) == ALL_LABELS
    too_many = {"task": "support", "events": events * 11}
    assert gateway.http.post("/v1/assess", json=too_many).status_code == 400
    assert gateway.http.post("/v1/assess", json={"task": "x", "events": []}).status_code == 404
    gateway.publish(None)
    wait_until(lambda: not gateway.readyz()[1]["serving"])
    none = gateway.http.post("/v1/assess", json={"task": "support", "events": events})
    assert none.status_code == 409
    assert none.json()["error"]["code"] == "no_student"
    time.sleep(0.2)
    assert len(gateway.events()) == 1


def test_the_learner_assesses_with_its_own_key(tmp_path: Path) -> None:
    gateway = RunningGateway(settings_for(tmp_path, gateway={"keys": ["app"]}))
    body = {"task": "support", "events": []}
    for token, status in (("app", 409), (gateway.keys.internal, 409), ("other", 401)):
        headers = {"authorization": f"Bearer {token}"}
        assert gateway.http.post("/v1/assess", json=body, headers=headers).status_code == status
    internal = {"authorization": f"Bearer {gateway.keys.internal}"}
    assert gateway.chat(headers=internal).status_code == 401
    gateway.stop()


PAUSE_SECONDS = 0.01


class SlowestSync(Worker):
    """How long the machine takes to wake up who waits and to sync what he writes, at worst, in
    seconds: other tests use it too."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.seconds = 0.0

    def _run(self) -> None:
        with self._path.open("wb") as file:
            started = time.monotonic()
            while not self._stop.wait(PAUSE_SECONDS):
                file.write(b"x")
                file.flush()
                os.fsync(file.fileno())
                ended = time.monotonic()
                self.seconds = max(self.seconds, ended - started - PAUSE_SECONDS)
                started = ended


def test_a_killed_gateway_loses_at_most_a_tenth_of_a_second(
    tmp_path: Path, students: Students
) -> None:
    """On a disk that syncs at once. What this one takes comes on top: one sync that was under way,
    and the one that was not done."""
    keys = open_keys(tmp_path)
    publish_live(tmp_path, keys, students.publish(tmp_path, 1))
    process, url = gateway_process(settings_for(tmp_path))
    answered: list[tuple[float, str]] = []
    slowest = SlowestSync(tmp_path / "synced")
    with httpx2.Client(base_url=url, timeout=30) as http, slowest:
        wait_until(lambda: http.get("/readyz").json()["serving"] != {})
        body = {"model": "desk", "messages": [{"role": "user", "content": "my parcel"}]}
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            response = http.post("/v1/chat/completions", json=body)
            answered.append((time.monotonic(), response.headers["x-flywheel-event-id"]))
        killed = time.monotonic()
        process.kill()
    process.communicate()
    kept = [event.event_id for event in captured(tmp_path, keys)]
    assert len(kept) == len(set(kept))
    lost = [at for at, event_id in answered if event_id not in set(kept)]
    allowed = 0.1 + 2 * slowest.seconds
    assert all(killed - at <= allowed for at in lost), (allowed, [killed - at for at in lost])


def test_a_signal_drains_loses_nothing_and_exits_with_0_without_heavy_imports(
    tmp_path: Path, students: Students
) -> None:
    keys = open_keys(tmp_path)
    publish_live(tmp_path, keys, students.publish(tmp_path, 1))
    teacher = Teacher(latency=1.0)
    with serving(teacher.app()) as port:
        teacher.port = port
        process, url = gateway_process(settings_for(tmp_path, teacher))
        with httpx2.Client(base_url=url, timeout=30) as http:
            wait_until(lambda: http.get("/readyz").json()["serving"] != {})
            body = {"model": "desk", "messages": [{"role": "user", "content": "my parcel"}]}
            ids = [
                http.post("/v1/chat/completions", json=body).headers["x-flywheel-event-id"]
                for _ in range(20)
            ]
            # One request is still with the teacher when the signal comes.
            late: list[int] = []
            chat = f"{url}/v1/chat/completions"
            other = {**body, "model": "other"}
            thread = threading.Thread(
                target=lambda: late.append(httpx2.post(chat, json=other, timeout=60).status_code)
            )
            thread.start()
            wait_until(lambda: len(teacher.requests) == 1)
            process.send_signal(signal.SIGTERM)
            thread.join(60)
        out, err = process.communicate(timeout=60)
        assert late == [200]
    assert process.returncode == 0, err
    assert "heavy: []" in out
    assert [event.event_id for event in captured(tmp_path, keys)] == ids


def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = settings_for(tmp_path, gateway={"port": port})
        with pytest.raises(PortInUse, match=f"port {port}.*gateway.port") as raised:
            run_gateway(settings, open_writer=lambda: EmbeddedTopicWriter(tmp_path / TOPIC_FILE))
    assert raised.value.exit_code == ExitCode.PORT_IN_USE


class DownTopic:
    """A writer that refuses until it is told to work."""

    def __init__(self) -> None:
        self.up = False
        self.sent: list[bytes] = []
        self.durable = 0

    def send(self, value: bytes, *, key: bytes | None = None, headers: Headers = ()) -> None:
        if not self.up:
            raise BrokerUnavailable("down")
        self.sent.append(value)

    def flush(self, timeout_seconds: float) -> None:
        if not self.up:
            raise BrokerUnavailable("down")
        self.durable = len(self.sent)

    def failed(self) -> int:
        return 0

    def close(self) -> None:
        self.up = False


def record(number: int) -> NativeRecord:
    return NativeRecord(
        schema="flywheel.prompt/1",
        event_id=f"e{number}",
        model="desk",
        messages=(Message("user", "x" * 10),),
    )


def test_while_the_topic_is_down_the_oldest_go_and_are_counted() -> None:
    registry, topic = CollectorRegistry(), DownTopic()
    capture = Capture(
        lambda: topic, GatewayMetrics(registry), key=b"k", buffer=50, max_record_bytes=1000
    )
    capture.start()
    for number in range(80):
        capture.put(record(number))
    wait_until(lambda: capture.is_alive())
    time.sleep(0.2)
    topic.up = True
    wait_until(lambda: topic.durable >= 50)
    capture.stop(1.0)
    kept = len(topic.sent)
    dropped = registry.get_sample_value(
        "flywheel_gateway_capture_dropped_total", {"reason": "overflow"}
    )
    assert kept + int(dropped or 0) == 80
    assert b'"e79"' in topic.sent[-1]
    assert registry.get_sample_value("flywheel_gateway_captured_total") == kept


def test_a_topic_that_cannot_even_be_opened_hurts_no_request(
    tmp_path: Path, students: Students
) -> None:
    (tmp_path / TOPIC_FILE).write_text("this is no SQLite file")
    gateway = RunningGateway(settings_for(tmp_path))
    gateway.serve(students.publish(tmp_path, 1))
    assert gateway.chat().status_code == 200
    (tmp_path / TOPIC_FILE).unlink()
    wait_until(lambda: gateway.metric("captured_total") == 1)
    gateway.stop()


def test_memory_of_recent_answers_is_bounded_in_number_and_bytes() -> None:
    recent = Recent(most=10, most_bytes=1000)

    for number in range(30):
        recent.add(record(number), size=1, alias=f"a{number}")
    assert recent.find("e19") is None
    assert recent.find("e20") is recent.find("a20") is not None
    recent.add(record(99), size=995)
    assert recent.find("e24") is None
    assert recent.find("e99") is not None


def test_no_prompt_text_is_logged(tmp_path: Path, students: Students) -> None:
    keys = open_keys(tmp_path)
    publish_live(tmp_path, keys, students.publish(tmp_path, 1, threshold=None))
    teacher = Teacher(status=500, answer="x")
    with serving(teacher.app()) as port:
        teacher.port = port
        process, url = gateway_process(settings_for(tmp_path, teacher))
        with httpx2.Client(base_url=url, timeout=30) as http:
            wait_until(lambda: http.get("/readyz").json()["serving"] != {})
            for text in ("sesame-secret", "sesame-secret " * 20_000):
                messages = [{"role": "user", "content": text}]
                http.post("/v1/chat/completions", json={"model": "desk", "messages": messages})
            http.post("/v1/chat/completions", content=b'{"sesame-secret')
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "sesame" not in out + err
    assert str(os.getpid()) not in out


def test_what_no_student_may_answer_is_captured_with_the_reason(
    tmp_path: Path, students: Students
) -> None:
    """Images are not kept, but what tells one from another; nothing of it is learned from."""
    teacher = Teacher()
    with serving(teacher.app()) as teacher.port:
        gateway = RunningGateway(settings_for(tmp_path, teacher))
        gateway.serve(students.publish(tmp_path, 1))
        image = {"url": f"data:image/png;base64,{b64encode(PIXELS).decode()}"}
        parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": image}]
        gateway.chat(messages=[{"role": "user", "content": parts}])
        gateway.chat(tools=[{"type": "function", "function": {"name": "look_up"}}])
        gateway.chat(n=2)
        gateway.chat(messages=["not", "an", "object"])
        gateway.chat("long " * 100_000, tools=[{"type": "function"}])
        gateway.chat("even longer " * 100_000)
        wait_until(lambda: len(gateway.events()) == 6)
        records = [msgspec.json.decode(one.value or b"") for one in topic_records(tmp_path)]
        events = gateway.events()
        gateway.stop()
    assert [event.past for event in events] == [
        "content", "tools", "choices", "malformed", "tools", "long",
    ]  # fmt: skip
    assert {event.task for event in events} == {"support"}
    assert [event.answer for event in events] == [*["refund"] * 5, "delivery"]
    assert records[0]["messages"][0]["content"] == "what is it?"
    (kept,) = records[0]["attachments"]
    assert kept == {
        "message": 0,
        "type": "image_url",
        "media_type": "image/png",
        "bytes": len(PIXELS),
        "sha256": sha256(PIXELS).hexdigest(),
    }
    assert records[5]["cut"] == 12 * 100_000 - len(records[5]["messages"][0]["content"])
    assert all(len(msgspec.json.encode(record)) < 20_000 for record in records)


def test_what_the_app_asks_for_is_on_the_record(tmp_path: Path, students: Students) -> None:
    teacher = Teacher()
    call = {"id": "c1", "type": "function", "function": {"name": "who", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "customer 7", "tool_call_id": "c1"},
        {"role": "user", "content": "where is my parcel"},
    ]
    with serving(teacher.app()) as teacher.port:
        gateway = RunningGateway(settings_for(tmp_path, teacher))
        gateway.serve(students.publish(tmp_path, 1))
        said = gateway.chat(
            messages=talk, temperature=0.3, seed=7, max_tokens=9, user="ann", store=True,
            metadata={"a": "b"}, service_tier="flex",
        )  # fmt: skip
        assert said.headers["x-flywheel-served-by"] == "student"
        wait_until(lambda: len(gateway.events()) == 1)
        (event,) = gateway.events()
        gateway.stop()
    assert event.past == ""
    assert event.asked == {"temperature": 0.3, "seed": 7, "max_tokens": 9}
    assert [(one.role, one.content) for one in event.messages] == [
        ("user", "hi"), ("assistant", ""), ("tool", "customer 7"), ("user", "where is my parcel"),
    ]  # fmt: skip
    assert event.messages[1].tool_calls == [call]
    assert event.messages[2].tool_call_id == "c1"
