"""Requests that no client would send, by the thousand: none is answered with an error of ours.

`make fuzz` sends twenty times as many.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gateway_rig import RunningGateway, Students, serving, settings_for, shared_students
from test_responses import CALL, Answering

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1000"))
SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["refund", "delivery"]}},
          "required": ["intent"]}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "who", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALLED = {"id": "c", "type": "function", "function": {"name": "who", "arguments": "{}"}}
HI = [{"role": "user", "content": "hi"}]
TALK = [
    {"role": "system", "content": "Sort."},
    {"role": "user", "content": [{"type": "text", "text": "where is it"}, IMAGE]},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "content": "7", "tool_call_id": "c"},
    {"role": "user", "content": "where is my parcel"},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    CALL,
    {"type": "function_call_output", "call_id": "c1", "output": "7"},
    {"type": "reasoning", "id": "r", "summary": []},
]
CHAT, RESPONSES = "chat/completions", "responses"
SAMPLES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"user": "ann", "temperature": 0.5, "max_tokens": 9, "stop": ["\n"], "messages": TALK,
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
            "stream_options": {"include_usage": True}, "metadata": {"a": "b"}}),
    (CHAT, {"stream": True, "n": 1, "messages": HI}),
    (CHAT, {"tools": [TOOL], "tool_choice": "auto", "messages": HI}),
    (RESPONSES, {"store": False, "instructions": "Sort.", "input": ITEMS, "tools": [],
                 "text": {"format": {"type": "json_schema", "schema": SCHEMA}, "verbosity": "low"},
                 "reasoning": {"effort": "low"}, "include": [], "metadata": {}}),
    (RESPONSES, {"input": "hi", "stream": True, "store": False}),
    ("feedback", {"id": "chatcmpl-1", "verdict": "bad", "correction": "refund", "messages": HI}),
    ("embeddings", {"input": "hi"}),
]  # fmt: skip
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1e308, 10**30, "", " ", "\0", "\ud83d", "a" * 20_000, "desk", [], {},
    [[]], [None], [{}], {"type": None}, {"type": "text"}, {"type": ["text"]}, {"text": 7}, "refund",
    {"": {"": {"": []}}}, {"$ref": "#"}, {"$ref": "file:///etc/passwd"}, {"nullable": True},
    HI[0], "data:image/png;base64,@@@@", "../../etc", "chatcmpl-", "resp_",
]  # fmt: skip


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture
def gateway(tmp_path: Path, students: Students) -> Iterator[RunningGateway]:
    teacher = Answering()
    with serving(teacher.app()) as teacher.port:
        settings = settings_for(tmp_path, teacher, task={"answer_pointer": "/intent"})
        made = RunningGateway(settings)
        made.serve(students.publish(tmp_path, 1))
        yield made
        made.stop()


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a request: what holds it, and its name there."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for name, child in list(children):
        yield node, name
        if isinstance(child, dict | list):
            yield from places(child)


def mutated(sample: dict[str, Any], dice: Random) -> bytes:
    body = json.loads(json.dumps({"model": "desk", **sample}))
    for _ in range(dice.randint(1, 3)):
        found = list(places(body))
        if not found:
            break
        holder, name = dice.choice(found)
        how = dice.random()
        if how < 0.7:
            holder[name] = json.loads(json.dumps(dice.choice(STRANGE)))
        elif how < 0.85:
            del holder[name]
        else:
            holder[name] = json.loads(json.dumps([holder[name]] * dice.randint(1, 3)))
    written = bytearray(json.dumps(body).encode())
    if dice.random() < 0.1 and written:
        for _ in range(dice.randint(1, 4)):
            written[dice.randrange(len(written))] = dice.randrange(256)
    return bytes(written)


def test_no_request_is_answered_with_an_error_of_ours(gateway: RunningGateway) -> None:
    dice = Random(int(os.environ.get("FUZZ_SEED", "12")))
    for number in range(REQUESTS):
        path, sample = dice.choice(SAMPLES)
        body = mutated(sample, dice)
        answer = gateway.http.post(
            f"/v1/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code < 500, (number, path, body)
        if answer.status_code >= 400 and "x-flywheel-served-by" not in answer.headers:
            assert answer.json()["error"]["message"], "in OpenAI's form"
    assert gateway.chat().status_code == 200
    assert gateway.metric("capture_dropped_total", reason="unencodable") == 0
