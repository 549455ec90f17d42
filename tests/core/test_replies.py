"""Replies in the dialects that servers speak: what is read, and what is no answer."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.replies import Completion, read_reply
from pipelines.shape import shape_in_words
from pipelines.types import Usage
from service.gateway.wire import StreamReader

USED = {"prompt_tokens": 12, "completion_tokens": 3}


def body(content: Any = "delivery", finish: Any = "stop", **about: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    if finish != "absent":
        choice["finish_reason"] = finish
    return json.dumps(
        {"id": "c-1", "model": "m", "choices": [choice], "usage": USED, **about}
    ).encode()


def said(reply: bytes) -> Completion:
    found = read_reply(reply)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "content",
    [
        "delivery",
        [{"type": "text", "text": "delivery"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
         {"type": "text", "text": "delivery"}],
        [{"type": "reasoning", "text": "refund?"}, {"type": "output_text", "text": "delivery"}],
        [{"type": "text", "text": "deli"}, {"type": "text", "text": "very"}],
        ["deli", "very"],
        "deli\x00very",
    ],
)  # fmt: skip
def test_content_is_text_or_parts(content: Any) -> None:
    assert said(body(content)).whole == "delivery"


@pytest.mark.parametrize(
    "finish", ["stop", "eos_token", "EOS", "end_turn", "stop_sequence", None, "absent", 7]
)
def test_any_end_is_an_end(finish: Any) -> None:
    assert said(body(finish=finish)).whole == "delivery"


@pytest.mark.parametrize(
    ("finish", "why"),
    [("length", "cut"), ("MAX_TOKENS", "cut"), ("content_filter", "content_filter"),
     ("SAFETY", "safety"), ("tool_calls", "tool_calls"), ("abort", "abort")],
)  # fmt: skip
def test_what_was_cut_or_filtered_is_no_answer(finish: str, why: str) -> None:
    found = said(body(finish=finish))
    assert (found.content, found.whole) == ("delivery", None)
    assert why in found.unusable


@pytest.mark.parametrize(
    "content", [None, "", " \n", [], [{"type": "thinking", "thinking": "hm"}], {}, 7]
)
def test_an_empty_answer_is_none(content: Any) -> None:
    assert said(body(content)).unusable == "the answer is empty"


@pytest.mark.parametrize(
    "about",
    [
        {"id": ""}, {"id": 7}, {"created": "now"}, {"usage": None}, {"usage": "many"},
        {"usage": {"prompt_tokens": None}}, {"usage": {"prompt_tokens": -5}}, {"model": None},
        {"system_fingerprint": {}},
    ],
)  # fmt: skip
def test_odd_side_fields_cost_themselves_alone(about: dict[str, Any]) -> None:
    assert said(body(**about)).whole == "delivery"
    assert said(body(**about)).usage in (None, Usage(prompt_tokens=12, completion_tokens=3))


def test_half_an_emoji_and_numbers_that_are_none_are_read() -> None:
    assert said(body("see \ud83d").replace(b"see ", b"see ")).whole == "see ?"
    assert said(body().replace(b'"m"', b'"m", "score": NaN')).whole == "delivery"


def test_old_completions_have_their_text_elsewhere() -> None:
    old = json.dumps({"choices": [{"text": " delivery", "finish_reason": "stop"}]}).encode()
    assert said(old).whole == " delivery"


def test_the_first_choice_is_the_one_with_index_0() -> None:
    late = {"index": 1, "message": {"content": "refund"}, "finish_reason": "stop"}
    first = {"index": 0, "message": {"content": "delivery"}, "finish_reason": "stop"}
    assert said(json.dumps({"choices": [late, first]}).encode()).whole == "delivery"


@pytest.mark.parametrize(
    "reply", [b"", b"null", b"[]", b"<html>", b'{"ok": true}', b'{"choices": "x"}', b"\xff"]
)
def test_what_is_no_completion_is_none(reply: bytes) -> None:
    assert read_reply(reply) is None


def stream(*chunks: dict[str, Any], end: bytes = b"data: [DONE]\n\n") -> Completion:
    reader = StreamReader()
    reader.feed(
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + end
    )
    return reader.completion()


def test_a_stream_is_put_together_whatever_its_pieces_are() -> None:
    whole = stream(
        {"choices": []},
        {
            "id": "c-1",
            "model": "m",
            "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}],
        },
        {"choices": [{"index": 1, "delta": {"content": "X"}}]},
        {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "deli"}]}}]},
        {"choices": [{"index": 0, "delta": {"content": "very"}}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": "eos_token"}]},
        {"choices": [], "usage": USED},
    )
    assert (whole.whole, whole.id, whole.model) == ("delivery", "c-1", "m")
    assert whole.usage == Usage(prompt_tokens=12, completion_tokens=3)


def test_a_stream_without_a_reason_to_end_is_no_answer() -> None:
    assert (
        stream({"choices": [{"index": 0, "delta": {"content": "delivery"}}]}, end=b"").whole is None
    )
    assert stream({"choices": [{"index": 0, "delta": {"content": "delivery"}}]}).whole is None


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSONS, JSONS, JSONS, JSONS)
def test_no_reply_is_an_error(content: Any, finish: Any, usage: Any, choices: Any) -> None:
    assert read_reply(body(content, finish, usage=usage)) is not None
    assert said(body(usage=usage)).whole == "delivery"
    read_reply(json.dumps({"choices": choices}).encode())
    stream(
        {"choices": choices},
        {"choices": [{"delta": {"content": content}, "finish_reason": finish}]},
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "empty"),
        ("  ", "empty"),
        ("It is about a secret.\nReally.", "29 characters of text in 2 lines"),
        ('{"category": "x", "a secret": 1}', "a JSON object with the fields category, …"),
        ("```json\n[1, 2]\n```", "a JSON list of 2"),
        ("<think>a secret</think>{}", "reasoning, then {}"),
        ("<think>a secret", "reasoning, then nothing"),
        ("7", "a JSON number or truth value"),
    ],
)
def test_a_shape_quotes_nothing(answer: str | None, words: str) -> None:
    assert shape_in_words(answer) == words
