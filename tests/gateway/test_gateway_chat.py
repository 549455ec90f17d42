"""Chat through a real gateway with the unmodified OpenAI client."""

import json
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from gateway_rig import (
    LABELS,
    RunningGateway,
    Students,
    Teacher,
    serving,
    settings_for,
    shared_students,
    wait_until,
)
from pydantic import BaseModel

from pipelines.records.common import user_key


@pytest.fixture(scope="session")
def students() -> Students:
    return shared_students()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    teacher = Teacher()
    with serving(teacher.app()) as port:
        teacher.port = port
        yield teacher


@pytest.fixture
def gateway(tmp_path: Path, teacher: Teacher) -> Iterator[RunningGateway]:
    running = RunningGateway(settings_for(tmp_path, teacher))
    yield running
    running.stop()


def client(gateway: RunningGateway, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="app-key", max_retries=0, **more)


def test_before_the_first_student_the_teacher_answers_and_its_answer_is_captured(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    with client(gateway) as app:
        raw = app.chat.completions.with_raw_response.create(
            model="desk",
            messages=[{"role": "user", "content": "give me my money"}],
            user="anna",
            extra_headers={"x-flywheel-attribute-channel": "mail"},
            seed=7,
        )
        answer = raw.parse()
    assert answer.choices[0].message.content == "refund"
    assert raw.headers["x-flywheel-served-by"] == "teacher"
    assert raw.headers["x-flywheel-version"] == "teacher"
    wait_until(lambda: len(gateway.events()) == 1)
    (event,) = gateway.events()
    assert event.event_id == raw.headers["x-flywheel-event-id"]
    assert event.task == "support"
    assert event.teacher_answer == event.answer == "refund"
    assert event.teacher_model == "big-teacher"
    assert event.served_by == "teacher"
    assert event.usage is not None
    assert event.usage.prompt_tokens == 20
    assert event.user_key is not None
    assert "anna" not in event.user_key
    assert event.attributes == {"channel": "mail"}
    headers, body = teacher.requests[0]
    assert headers["authorization"] == "Bearer our-own-key"
    sent = json.loads(body)
    assert sent["model"] == "big-teacher"
    assert sent["seed"] == 7


def test_after_it_the_student_answers_and_says_which_version(
    gateway: RunningGateway, teacher: Teacher, students: Students
) -> None:
    student = students.publish(gateway.settings.data_dir, 1)
    gateway.serve(student)
    with client(gateway) as app:
        raw = app.chat.completions.with_raw_response.create(
            model="desk", messages=[{"role": "user", "content": "where is my parcel"}]
        )
        answer = raw.parse()
    assert answer.model == student.name == raw.headers["x-flywheel-version"]
    assert answer.choices[0].message.content == "delivery"
    assert answer.id == f"chatcmpl-{raw.headers['x-flywheel-event-id']}"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 3
    assert float(raw.headers["x-flywheel-confidence"]) > 0.5
    assert not teacher.requests
    wait_until(lambda: len(gateway.events()) == 1)
    (event,) = gateway.events()
    assert event.student is not None
    assert event.student.version == student.name
    assert event.student.label == event.answer == "delivery"
    assert event.served_by == "student"
    assert event.teacher_answer is None


def test_a_student_streams_to_the_openai_client(
    gateway: RunningGateway, students: Students
) -> None:
    student = students.publish(gateway.settings.data_dir, 1)
    gateway.serve(student)
    with client(gateway) as app:
        chunks = list(
            app.chat.completions.create(
                model="desk",
                messages=[{"role": "user", "content": "send me the invoice"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "invoice"
    assert {chunk.model for chunk in chunks} == {student.name}
    assert chunks[-1].usage is not None


def test_a_teachers_stream_is_passed_on_and_captured_whole(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    teacher.answer = "delivery"
    with client(gateway) as app:
        chunks = list(
            app.chat.completions.create(
                model="desk", messages=[{"role": "user", "content": "hm"}], stream=True
            )
        )
    assert len(chunks) == len("delivery") + 1
    wait_until(lambda: len(gateway.events()) == 1)
    assert gateway.events()[0].teacher_answer == "delivery"


def test_an_answer_that_was_cut_for_length_is_no_label(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    teacher.finish_reason = "length"
    gateway.chat()
    wait_until(lambda: len(gateway.events()) == 1)
    assert gateway.events()[0].teacher_answer is None
    assert gateway.events()[0].answer == "refund"


def test_unclaimed_requests_pass_through_byte_for_byte_and_uncaptured(
    gateway: RunningGateway, teacher: Teacher, students: Students
) -> None:
    gateway.serve(students.publish(gateway.settings.data_dir, 1))
    body = b'{ "model":"gpt-9" , "messages":[{"role":"user","content":"x"}], "odd": 1.50 }'
    response = gateway.http.post(
        "/v1/chat/completions", content=body, headers={"authorization": "Bearer the-apps-own"}
    )
    assert response.status_code == 200
    headers, sent = teacher.requests[0]
    assert sent == body
    assert "the-apps-own" not in str(headers)
    assert gateway.metric(
        "requests_total", task="unclaimed", served_by="teacher", outcome="passed_through"
    )
    gateway.chat()
    wait_until(lambda: len(gateway.events()) == 1)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"n": 2}, "choices"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "format"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "content"),
        ({"messages": "not a list"}, "malformed"),
    ],
)
def test_what_a_student_cannot_do_goes_to_the_teacher(
    gateway: RunningGateway,
    teacher: Teacher,
    students: Students,
    more: dict[str, Any],
    reason: str,
) -> None:
    gateway.serve(students.publish(gateway.settings.data_dir, 1))
    response = gateway.chat(**more)
    assert response.headers["x-flywheel-served-by"] == "teacher"
    sent = json.loads(teacher.requests[0][1])
    assert {name: sent[name] for name in more} == more
    assert gateway.metric("unsupported_total", task="support", reason=reason) == 1


def test_text_parts_are_text(gateway: RunningGateway, students: Students) -> None:
    gateway.serve(students.publish(gateway.settings.data_dir, 1))
    parts = [{"type": "text", "text": "where is my"}, {"type": "text", "text": "parcel"}]
    response = gateway.chat(messages=[{"role": "user", "content": parts}])
    assert response.json()["choices"][0]["message"]["content"] == "delivery"


def test_answers_have_the_teachers_form_and_fit_a_json_schema(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    settings = settings_for(tmp_path, teacher, task={"answer_pointer": "/intent"})
    gateway = RunningGateway(settings)
    gateway.serve(students.publish(tmp_path, 1))
    schema = {
        "type": "object",
        "properties": {"intent": {"type": "string", "enum": list(LABELS)}},
        "required": ["intent"],
        "additionalProperties": False,
    }
    fitting = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = gateway.chat(response_format=fitting)
    content = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert content == {"intent": "delivery"}
    more = {**schema, "required": ["intent", "reason"]}
    other = {"type": "json_schema", "json_schema": {"name": "s", "schema": more}}
    assert gateway.chat(response_format=other).headers["x-flywheel-served-by"] == "teacher"
    # The student would say "delivery", which this schema does not know.
    narrow = {**schema, "properties": {"intent": {"enum": [LABELS[0]]}}}
    other = {"type": "json_schema", "json_schema": {"name": "s", "schema": narrow}}
    assert gateway.chat(response_format=other).headers["x-flywheel-served-by"] == "teacher"
    gateway.stop()
    event = gateway.events()[-1]
    assert (event.served_by, event.student) == ("teacher", None)


@pytest.mark.parametrize(
    ("more", "user"),
    [
        ({"user": {"id": "u-7"}}, "u-7"), ({"user": 7}, "7"), ({"user": ["u-7"]}, None),
        ({"safety_identifier": "u-7"}, "u-7"), ({"max_tokens": "10"}, None), ({"stream": 0}, None),
        ({"stream_options": "all"}, None), ({"logprobs": 0}, None),
        ({"modalities": ["text"]}, None),
        ({"metadata": {"deep": {"er": None}}}, None), ({"n": None, "stop": 7}, None),
    ],
)  # fmt: skip
def test_what_is_odd_beside_the_messages_costs_no_answer_and_no_prompt(
    more: dict[str, Any], user: str | None, gateway: RunningGateway, students: Students
) -> None:
    gateway.serve(students.publish(gateway.settings.data_dir, 1))
    answer = gateway.chat(**more)
    assert answer.headers["x-flywheel-served-by"] == "student"
    gateway.stop()
    event = gateway.events()[-1]
    assert event.served_by == "student"
    assert event.user_key == (user_key(user, b"salt") if user else None)


@pytest.mark.parametrize("model", ["desk", "another"])
def test_half_an_emoji_reaches_whoever_answers(
    model: str, gateway: RunningGateway, teacher: Teacher, students: Students
) -> None:
    gateway.serve(students.publish(gateway.settings.data_dir, 1))
    body = b'{"model": "%s", "seed": NaN, "messages": [{"role": "user", "content": "%s"}]}' % (
        model.encode(),
        rb"where is my parcel \ud83d",
    )
    answer = httpx2.post(
        f"{gateway.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200
    served_by = "student" if model == "desk" else "teacher"
    assert answer.headers["x-flywheel-served-by"] == served_by
    gateway.stop()
    if model == "desk":
        assert gateway.events()[-1].messages[0].content == "where is my parcel ?"


class Intent(str, Enum):  # noqa: UP042 - as apps write it
    delivery = "delivery"
    refund = "refund"
    invoice = "invoice"


class Sorted(BaseModel):
    """An Enum class becomes a reference into `$defs`."""

    intent: Intent


def test_the_student_answers_what_the_official_client_parses_into_an_enum(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    settings = settings_for(tmp_path, teacher, task={"answer_pointer": "/intent"})
    gateway = RunningGateway(settings)
    gateway.serve(students.publish(tmp_path, 1))
    said = client(gateway).chat.completions.parse(
        model="desk",
        messages=[{"role": "user", "content": "where is my parcel"}],
        response_format=Sorted,
    )
    gateway.stop()
    assert said.choices[0].message.parsed == Sorted(intent=Intent.delivery)
    assert said.model.startswith("support-v1"), "the student's"


@pytest.mark.parametrize(
    ("status", "told"), [(429, 429), (400, 400), (503, 503), (401, 502), (302, 502)]
)
def test_the_teachers_refusals_reach_the_app(
    gateway: RunningGateway, teacher: Teacher, status: int, told: int
) -> None:
    teacher.status = status
    teacher.headers = {"retry-after": "7", "location": "http://127.0.0.1:1/"}
    response = gateway.chat()
    assert response.status_code == told
    assert response.json()["error"]["message"]
    if told == status:
        assert response.headers["retry-after"] == "7"
    assert len(teacher.requests) == 1
    assert gateway.events() == []


def test_a_silent_teacher_is_a_504_and_a_missing_one_a_502(
    tmp_path: Path, teacher: Teacher
) -> None:
    teacher.latency = 3
    gateway = RunningGateway(settings_for(tmp_path, teacher, gateway={"timeout": "300ms"}))
    response = gateway.chat()
    assert response.status_code == 504
    assert "0.3 s" in response.json()["error"]["message"]
    gateway.stop()
    gone = settings_for(tmp_path, teacher, upstream={"base_url": "http://127.0.0.1:9/v1"})
    gateway = RunningGateway(gone)
    with client(gateway) as app, pytest.raises(openai.InternalServerError) as raised:
        app.chat.completions.create(model="desk", messages=[{"role": "user", "content": "x"}])
    assert raised.value.status_code == 502
    assert "cannot be reached" in str(raised.value)
    gateway.stop()


def test_without_a_teacher_the_app_is_told_what_to_set(tmp_path: Path) -> None:
    gateway = RunningGateway(settings_for(tmp_path))
    response = gateway.chat()
    assert response.status_code == 503
    assert "teacher.base_url" in response.json()["error"]["message"]
    gateway.stop()


def test_keys_are_wanted_where_keys_are_set(tmp_path: Path, teacher: Teacher) -> None:
    gateway = RunningGateway(settings_for(tmp_path, teacher, gateway={"keys": ["k1", "app-key"]}))
    response = gateway.chat()
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert gateway.chat(headers={"authorization": "Bearer k2"}).status_code == 401
    assert gateway.http.get("/v1/models").status_code == 401
    assert gateway.http.get("/healthz").status_code == 200
    with client(gateway) as app:
        assert [model.id for model in app.models.list()] == ["desk"]
        app.chat.completions.create(model="desk", messages=[{"role": "user", "content": "x"}])
    assert teacher.requests[0][0]["authorization"] == "Bearer our-own-key"
    gateway.stop()


def test_oversized_and_malformed_bodies_are_refused(tmp_path: Path, teacher: Teacher) -> None:
    gateway = RunningGateway(settings_for(tmp_path, teacher, gateway={"max_body_bytes": 2000}))
    assert gateway.chat("x" * 3000).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100

    assert gateway.http.post("/v1/chat/completions", content=pieces()).status_code == 413
    for body in (b"", b"[]", b"{", b'{"model": 1}', b"\xff", b"[" * 1900, b'{"model":"\\ud800"}'):
        response = gateway.http.post("/v1/chat/completions", content=body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert gateway.http.get("/v1/nothing").status_code == 404
    assert gateway.http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert not teacher.requests
    gateway.stop()


def test_metrics_are_exported(gateway: RunningGateway) -> None:
    gateway.chat()
    text = gateway.http.get("/metrics").text
    assert "flywheel_gateway_requests_total" in text
    assert "flywheel_gateway_capture_queue_events" in text


def test_kept_alive_connections_are_not_delayed(gateway: RunningGateway) -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms an answer."""
    took = []
    for _ in range(20):
        started = time.perf_counter()
        gateway.http.get("/healthz")
        took.append(time.perf_counter() - started)
    assert min(took) < 0.03
