"""The Responses API with the official client: claimed models are prompts like any other."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from gateway_rig import (
    TASK,
    LearnerSide,
    RunningGateway,
    Students,
    Teacher,
    serving,
    settings_for,
    shared_students,
    wait_until,
)
from openai.types.responses import Response as OpenAIResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.gateway.responses import RESPONSES
from service.keys import open_keys
from service.sections import BudgetSettings

TEXT = "where is my parcel"
CALL = {"type": "function_call", "call_id": "c1", "name": "who", "arguments": "{}"}


class Answering(Teacher):
    """A teacher that speaks the Responses API too, as strictly as is of use here."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/responses", self._respond, methods=["POST"]),
                Route("/v1/{path:path}", self._anything, methods=["POST"]),
            ]
        )

    async def _anything(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    async def _respond(self, request: Request) -> Response:
        try:
            asked = json.loads(await request.body())
        except ValueError:
            return JSONResponse({"error": {"message": "no JSON", "type": "t"}}, 400)
        self.requests.append((dict(request.headers), json.dumps(asked).encode()))
        if refused := {"messages", "max_tokens", "max_completion_tokens"} & {*asked}:
            return JSONResponse({"error": {"message": f"unknown {refused}", "type": "t"}}, 400)
        said = self._said(asked)
        if not asked.get("stream"):
            return JSONResponse(said)
        return StreamingResponse(self._events(said), media_type="text/event-stream")

    def _said(self, asked: dict[str, Any]) -> dict[str, Any]:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": self.answer}
        thought = {"type": "reasoning", "id": "rs_1", "summary": []}
        message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                   "content": [part]}  # fmt: skip
        return {
            "id": "resp_teacher", "object": "response", "created_at": 1, "status": "completed",
            "model": asked.get("model", "of the prompt"), "output": [thought, message],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "usage": {"input_tokens": 20, "input_tokens_details": {"cached_tokens": 0},
                      "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 4},
                      "total_tokens": 25},
        }  # fmt: skip

    async def _events(self, said: dict[str, Any]) -> AsyncIterator[bytes]:
        """As many as are listened to."""
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**said, "output": []}},
            *({"type": "response.output_text.delta", "delta": one} for one in self.answer),
            {"type": "response.completed", "response": said},
        ]
        for event in events:
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture
def teacher() -> Iterator[Answering]:
    made = Answering()
    with serving(made.app()) as made.port:
        yield made


def running(tmp_path: Path, teacher: Teacher, **task: Any) -> RunningGateway:
    return RunningGateway(settings_for(tmp_path, teacher, task=task))


@pytest.fixture
def gateway(tmp_path: Path, teacher: Answering, students: Students) -> Iterator[RunningGateway]:
    made = running(tmp_path, teacher)
    made.serve(students.publish(tmp_path, 1))
    yield made
    made.stop()


def client(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="app-key", max_retries=0)


def test_without_a_student_the_teacher_answers_and_its_answer_is_a_label(
    tmp_path: Path, teacher: Answering
) -> None:
    gateway = running(tmp_path, teacher)
    app = client(gateway)
    plain = app.responses.create(
        model="desk", instructions="Sort.", input=TEXT, max_output_tokens=99, user="ann",
        reasoning={"effort": "low"}, temperature=0.5,
    )  # fmt: skip
    assert plain.output_text == "refund"
    streamed = list(app.responses.create(model="desk", input=[{"role": "user", "content": TEXT}],
                                         stream=True))  # fmt: skip
    assert streamed[-1].type == "response.completed"
    wait_until(lambda: len(gateway.events()) == 2)
    first, second = gateway.events()
    gateway.stop()
    assert [(m.role, m.content) for m in first.messages] == [("system", "Sort."), ("user", TEXT)]
    assert first.asked == {"temperature": 0.5, "reasoning_effort": "low", "max_tokens": 99}
    assert first.user_key is not None
    assert [event.teacher_answer for event in (first, second)] == ["refund", "refund"]
    assert [event.past for event in (first, second)] == ["", ""]
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (20, 5)
    asked = [json.loads(body) for _, body in teacher.requests]
    assert {one["model"] for one in asked} == {"big-teacher"}
    assert asked[0]["max_output_tokens"] == 99


def test_a_student_answers_what_is_not_to_be_stored_plain_and_streamed(
    gateway: RunningGateway, teacher: Answering
) -> None:
    app = client(gateway)
    said = app.responses.with_raw_response.create(
        model="desk", input=TEXT, store=False, metadata={"a": "b"}
    )
    assert said.headers["x-flywheel-served-by"] == "student"
    response = said.parse()
    assert response.output_text == "delivery"
    assert (response.status, response.metadata) == ("completed", {"a": "b"})
    OpenAIResponse.model_validate(response.model_dump(warnings=False))  # every field has its type
    with app.responses.stream(model="desk", input=TEXT, store=False) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "delivery"
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    assert teacher.requests == []
    given = {"id": response.id, "verdict": "bad", "correction": "refund"}
    assert gateway.http.post("/v1/feedback", json=given).status_code == 202
    wait_until(lambda: len(gateway.events()) == 3)


def test_the_asynchronous_client_is_answered_too(gateway: RunningGateway) -> None:
    async def ask() -> str:
        app = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k")
        async with app.responses.stream(model="desk", input=TEXT, store=False) as stream:
            said = await stream.get_final_response()
        await app.close()
        return said.output_text

    assert asyncio.run(ask()) == "delivery"


class Sorted(BaseModel):
    intent: Literal["refund", "delivery", "invoice"]


class Reasoned(Sorted):
    reason: str


def test_a_json_schema_decides_as_in_chats(
    tmp_path: Path, teacher: Answering, students: Students
) -> None:
    teacher.answer = '{"intent": "refund", "reason": "money"}'
    gateway = running(tmp_path, teacher, answer_pointer="/intent")
    gateway.serve(students.publish(tmp_path, 1))
    app = client(gateway)
    parsed = app.responses.parse(model="desk", input=TEXT, text_format=Sorted, store=False)
    assert parsed.output_parsed == Sorted(intent="delivery")
    assert teacher.requests == []
    both = app.responses.parse(model="desk", input=TEXT, text_format=Reasoned, store=False)
    assert both.output_parsed == Reasoned(intent="refund", reason="money")
    wait_until(lambda: [event.past for event in gateway.events()] == ["", "format"])
    gateway.stop()


def test_what_is_to_be_stored_is_the_teachers_and_a_label_all_the_same(
    tmp_path: Path, gateway: RunningGateway, teacher: Answering, students: Students
) -> None:
    said = client(gateway).responses.create(model="desk", input=TEXT)
    assert said.id == "resp_teacher", "it can be looked up there"
    wait_until(lambda: len(gateway.events()) == 1)
    (event,) = gateway.events()
    assert (event.past, event.teacher_answer) == ("", "refund")
    assert event.attributes["unsure"] == "stored"
    other = tmp_path / "other"
    stateless = running(other, teacher, stateless=True)
    stateless.serve(students.publish(other, 1))
    assert client(stateless).responses.create(model="desk", input=TEXT).output_text == "delivery"
    stateless.stop()


@pytest.mark.parametrize(
    ("asks", "why"),
    [
        ({"previous_response_id": "resp_1"}, "state"),
        ({"conversation": "conv_1"}, "state"),
        ({"prompt": {"id": "pmpt_1"}, "input": None}, "state"),
        ({"background": True}, "state"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "state"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "who", "parameters": {}}]}, "tools"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "content"),
        ({"input": [{"type": "computer_call_output", "output": {}}]}, "content"),
        ({"input": 7}, "malformed"),
    ],
)  # fmt: skip
def test_what_no_student_can_answer_goes_to_the_teacher_with_the_reason(
    asks: dict[str, Any], why: str, gateway: RunningGateway, teacher: Answering
) -> None:
    body = {"model": "desk", "input": TEXT, "store": False, **asks}
    answer = gateway.http.post("/v1/responses", json=body)
    assert answer.json()["id"] == "resp_teacher"
    assert json.loads(teacher.requests[0][1]) == {**body, "model": "big-teacher"}
    wait_until(lambda: [event.past for event in gateway.events()] == [why])


def test_tool_turns_before_are_part_of_the_conversation(gateway: RunningGateway) -> None:
    talk = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "customer 7"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "hello"}]},
        {"type": "message", "role": "user", "content": TEXT},
    ]
    body = {"model": "desk", "input": talk, "store": False}
    answer = gateway.http.post("/v1/responses", json=body)
    assert answer.headers["x-flywheel-served-by"] == "student"
    wait_until(lambda: len(gateway.events()) == 1)
    messages = gateway.events()[0].messages
    assert [(one.role, one.content) for one in messages] == [
        ("user", "hi"), ("assistant", ""), ("tool", "customer 7"), ("assistant", "hello"),
        ("user", TEXT),
    ]  # fmt: skip
    function = {"name": "who", "arguments": "{}"}
    assert messages[1].tool_calls == [{"id": "c1", "type": "function", "function": function}]
    assert messages[2].tool_call_id == "c1"


def test_an_unsure_student_escalates_with_a_bounded_answer(
    tmp_path: Path, teacher: Answering, students: Students
) -> None:
    with LearnerSide(tmp_path, open_keys(tmp_path), BudgetSettings()).running() as learner:
        told = {"instructions": "Sort it."}
        settings = settings_for(tmp_path, teacher, task=told, learner={"port": learner.port})
        gateway = RunningGateway(settings)
        gateway.serve(students.publish(tmp_path, 1, threshold=None))
        body = {"model": "desk", "input": TEXT, "store": False, "max_output_tokens": 10**6}
        answer = gateway.http.post("/v1/responses", json=body)
        assert answer.headers["x-flywheel-served-by"] == "teacher"
        with client(gateway).responses.stream(model="desk", input=TEXT, store=False) as stream:
            assert stream.get_final_response().output_text == "refund"
        wait_until(lambda: len(gateway.events()) == 2)
        kept = gateway.events()
        gateway.stop()
    assert [event.teacher_answer for event in kept] == ["refund", "refund"]
    assert [event.attributes["escalation"] for event in kept] == ["answered", "answered"]
    first, second = (json.loads(body) for _, body in teacher.requests)
    assert first == {"model": "big-teacher", "input": TEXT, "store": False,
                     "max_output_tokens": 256, "instructions": "Sort it."}  # fmt: skip
    assert "stream" not in second


def test_a_stored_prompt_without_a_model_passes(
    gateway: RunningGateway, teacher: Answering
) -> None:
    answer = gateway.http.post("/v1/responses", json={"prompt": {"id": "pmpt_1"}})
    assert answer.json()["model"] == "of the prompt"
    assert gateway.events() == []


@pytest.mark.parametrize(
    ("said", "unusable"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "cut"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "filter"),
        ({"status": "failed", "error": {"message": "x"}}, "error"),
        ({"output": [CALL]}, "tool_calls"),
        ({"output": []}, "empty"),
    ],
)
def test_answers_that_are_not_whole_are_none(said: dict[str, Any], unusable: str) -> None:
    whole = Answering()._said({"model": "m"})
    assert RESPONSES.read_reply(json.dumps(whole).encode()).whole == "refund"  # type: ignore[union-attr]
    found = RESPONSES.read_reply(json.dumps({**whole, **said}).encode())
    assert found is not None
    assert found.whole is None
    assert unusable in found.unusable


def test_a_stream_without_its_last_event_says_nothing() -> None:
    listener = RESPONSES.listener()
    listener.feed(b'data: {"type": "response.output_text.delta", "delta": "refund"}\n\n')
    listener.close()
    assert not listener.ended
    assert listener.completion().whole is None


def test_where_responses_do_not_pass_only_a_tasks_are_answered(
    tmp_path: Path, teacher: Answering, students: Students
) -> None:
    opened = RunningGateway(
        settings_for(tmp_path / "opened", teacher, gateway={"pass_through": ["responses/*"]})
    )
    assert client(opened).responses.create(model="any", input=TEXT).id == "resp_teacher"
    opened.stop()
    closed: dict[str, Any] = {"pass_through": []}
    gateway = RunningGateway(settings_for(tmp_path, teacher, gateway=closed))
    gateway.serve(students.publish(tmp_path, 1))
    asked = {"input": TEXT, "store": False}
    assert gateway.http.post("/v1/responses", json={"model": "any", **asked}).status_code == 404
    assert gateway.http.post("/v1/responses", json={"model": "desk", **asked}).status_code == 200
    assert TASK in gateway.readyz()[1]["serving"]
    gateway.stop()
