"""The official client, feature by feature: without a student, with one, and with all escalating."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from gateway_rig import (
    LearnerSide,
    RunningGateway,
    Students,
    serving,
    settings_for,
    shared_students,
)
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from test_responses import Answering

from service.keys import open_keys
from service.sections import BudgetSettings

TEXT = "where is my parcel"
ASK: dict[str, Any] = {"model": "desk", "messages": [{"role": "user", "content": TEXT}]}
PLAIN: dict[str, Any] = {"model": "desk", "input": TEXT, "store": False}
TOOL: Any = {"type": "function", "function": {"name": "who", "parameters": {"type": "object"}}}
Mode = Literal["teacher", "student", "escalating"]
SAYS: dict[Mode, str] = {"teacher": "refund", "student": "delivery", "escalating": "refund"}


class Sorting(Answering):
    """A teacher that answers in the form that it is asked for."""

    async def _chat(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        wanted = json.dumps([asked.get("response_format"), asked.get("n")])
        self.answer = (
            json.dumps({"intent": "refund", "of": {"who": {"name": "me"}}})
            if "who" in wanted
            else json.dumps({"intent": "refund"})
            if "intent" in wanted
            else "refund"
        )
        return await super()._chat(request)

    async def _anything(self, request: Request) -> Response:
        vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
        return JSONResponse({"object": "list", "data": [vector], "model": "m",
                             "usage": {"prompt_tokens": 1, "total_tokens": 1}})  # fmt: skip


class Served:
    """A gateway in one of the modes, and the official client in front of it."""

    def __init__(self, mode: Mode, gateway: RunningGateway) -> None:
        self.mode = mode
        self.says = SAYS[mode]
        self.url = f"{gateway.url}/v1"
        self.app = openai.OpenAI(base_url=self.url, api_key="app-key", max_retries=0)


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture(scope="module", params=["teacher", "student", "escalating"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, students: Students
) -> Iterator[Served]:
    mode: Mode = request.param
    folder: Path = tmp_path_factory.mktemp(mode)
    teacher = Sorting()
    with ExitStack() as stack:
        teacher.port = stack.enter_context(serving(teacher.app()))
        learner = LearnerSide(folder, open_keys(folder), BudgetSettings())
        stack.enter_context(learner.running())
        task = {"answer_pointer": "/intent"} if mode == "student" else {}
        gateway = RunningGateway(
            settings_for(folder, teacher, task=task, learner={"port": learner.port})
        )
        stack.callback(gateway.stop)
        if mode != "teacher":
            threshold = 0.0 if mode == "student" else None
            gateway.serve(students.publish(folder, 1, threshold=threshold))
        yield Served(mode, gateway)


def said(served: Served, content: str | None) -> str:
    """The label: a student with an answer pointer writes JSON."""
    assert content is not None
    return str(json.loads(content)["intent"]) if content.startswith("{") else content


def test_chats_plain_raw_and_streamed(served: Served) -> None:
    chats = served.app.chat.completions
    assert said(served, chats.create(**ASK).choices[0].message.content) == served.says
    raw = chats.with_raw_response.create(**ASK)
    by = "student" if served.mode == "student" else "teacher"
    assert raw.headers["x-flywheel-served-by"] == by
    assert raw.parse().usage.total_tokens > 0
    assert raw.request_id, "to be named where something went wrong"
    options: Any = {"include_usage": True}
    chunks = list(chats.create(**ASK, stream=True, stream_options=options))
    pieces = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert said(served, "".join(pieces)) == served.says
    with chats.stream(**ASK) as stream:
        stream.until_done()
        final = stream.get_final_completion().choices[0].message.content
    assert said(served, final) == served.says


def test_the_asynchronous_client_five_at_once(served: Served) -> None:
    async def ask() -> list[str | None]:
        app = openai.AsyncOpenAI(base_url=served.url, api_key="k", max_retries=0)
        found = await asyncio.gather(*(app.chat.completions.create(**ASK) for _ in range(5)))
        await app.close()
        return [one.choices[0].message.content for one in found]

    assert {said(served, one) for one in asyncio.run(ask())} == {served.says}


class Sorted(BaseModel):
    intent: Literal["refund", "delivery", "invoice"]


class Person(BaseModel):
    name: str


class Owner(BaseModel):
    who: Person


class Nested(Sorted):
    of: Owner


def test_parsed_models_flat_and_nested(served: Served) -> None:
    flat = served.app.chat.completions.parse(**ASK, response_format=Sorted)
    assert flat.choices[0].message.parsed == Sorted(intent=served.says)  # type: ignore[arg-type]
    nested = served.app.chat.completions.parse(**ASK, response_format=Nested)
    assert nested.choices[0].message.parsed == Nested(
        intent="refund", of=Owner(who=Person(name="me"))
    ), "no student answers what it cannot write"


@pytest.mark.parametrize(
    "more",
    [{"tools": [TOOL]}, {"n": 2}, {"logprobs": True, "top_logprobs": 1},
     {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}],
)  # fmt: skip
def test_what_only_a_teacher_can_do_it_does(served: Served, more: dict[str, Any]) -> None:
    raw = served.app.chat.completions.with_raw_response.create(**ASK, **more)
    assert raw.headers["x-flywheel-served-by"] == "teacher"
    assert raw.parse().choices[0].message.content == "refund"


@pytest.mark.parametrize(
    "more",
    [{"seed": 7}, {"store": True}, {"metadata": {"a": "b"}}, {"service_tier": "flex"},
     {"reasoning_effort": "low"}, {"stop": ["x"]}, {"logit_bias": {"1": 1}}, {"user": "ann"},
     {"parallel_tool_calls": False}, {"safety_identifier": "s"}, {"prompt_cache_key": "k"},
     {"extra_query": {"a": "b"}}, {"extra_headers": {"x-flywheel-attribute-channel": "mail"}},
     {"extra_body": {"top_k": 5}}, {"tools": [TOOL], "tool_choice": "none"}],
    ids=str,
)  # fmt: skip
def test_what_changes_nothing_for_a_student_is_no_hindrance(
    served: Served, more: dict[str, Any]
) -> None:
    raw = served.app.chat.completions.with_raw_response.create(**ASK, **more)
    assert said(served, raw.parse().choices[0].message.content) == served.says


@pytest.mark.parametrize(
    "messages",
    [[{"role": "developer", "content": "Sort."}, {"role": "user", "content": TEXT}],
     [{"role": "user", "content": [{"type": "text", "text": TEXT,
                                    "cache_control": {"type": "ephemeral"}}]}],
     [{"role": "user", "name": "ann", "content": TEXT + " 🙂 مرحبا"}]],
    ids=["developer", "cached part", "name, emoji, right to left"],
)  # fmt: skip
def test_messages_of_all_kinds(served: Served, messages: Any) -> None:
    answer = served.app.chat.completions.create(model="desk", messages=messages)
    assert said(served, answer.choices[0].message.content) == served.says


RESPONSES: dict[str, Callable[[openai.OpenAI], str]] = {
    "create": lambda app: app.responses.create(**PLAIN).output_text,
    "stream": lambda app: list(app.responses.create(**PLAIN, stream=True))[-1].response.output_text,
    "raw": lambda app: app.responses.with_raw_response.create(**PLAIN).parse().output_text,
}


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(served: Served, name: str) -> None:
    assert said(served, RESPONSES[name](served.app)) == served.says


def test_embeddings_and_models(served: Served) -> None:
    found = served.app.embeddings.create(model="any", input="hi", encoding_format="float")
    assert found.data[0].embedding == [0.5]
    assert [one.id for one in served.app.models.list()] == ["desk"]


def test_what_is_wrong_is_an_error_of_the_client(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=r"gateway\.pass_through"):
        served.app.files.list()
    with pytest.raises(openai.BadRequestError, match="not a JSON object"):
        served.app.post("/chat/completions", cast_to=object, body=["no", "request"])
