"""What decode promises: strict about form, careful about whose word counts, never a surprise."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from decode_samples import (
    KEY,
    PAIR,
    PLAIN,
    POLICY,
    SOURCE,
    TOLD,
    WRITTEN,
    WRITTEN_MS,
    changed,
    read,
    signed,
)
from msgspec.structs import replace as moved

from pipelines.decode import MAX_REASON_CHARACTERS, UNREADABLE_HEADER, decode
from pipelines.errors import InvalidMessage
from pipelines.records.common import EARLIEST, MAX_AHEAD, DecodePolicy, user_key
from pipelines.records.native import (
    SCHEMA,
    NativeFeedback,
    NativeRecord,
    NativeStudent,
    NativeUsage,
    encode_native,
    json_schema,
)
from pipelines.records.signature import PRODUCER_HEADER, SIGNATURE_HEADER, sign
from pipelines.types import (
    Feedback,
    Headers,
    Message,
    PromptEvent,
    StudentAnswer,
    Usage,
)

PUBLISHED = Path(__file__).parents[2] / "docs" / "prompt-event.schema.json"

# The native shape


def test_a_native_record_becomes_an_event() -> None:
    event = read({**PLAIN, "user": "u-7", "answer": "x", "attributes": {"region": "eu"}})
    assert event == PromptEvent(
        event_id=event.event_id,
        task="support",
        model="support-large",
        occurred_at=datetime(2026, 11, 23, 8, tzinfo=UTC),
        messages=(Message("user", "Where is my card?"),),
        answer="x",
        user_key=user_key("u-7", b"salt"),
        attributes={"region": "eu"},
        source=SOURCE,
    )


def test_what_encode_native_writes_is_what_decode_reads() -> None:
    record = NativeRecord(
        schema=SCHEMA,
        event_id="e-1",
        model="support-large",
        occurred_at=datetime(2026, 11, 23, 8, tzinfo=UTC),
        messages=(Message("user", "Where is my card?"),),
        answer="card_arrival",
        served_by="student",
        student=NativeStudent(version="support-v3-1f2e3d4c", label="card_arrival", confidence=0.75),
        teacher_answer="card_lost",
        teacher_model="large-1",
        usage=NativeUsage(prompt_tokens=12, completion_tokens=2),
        feedback=NativeFeedback(verdict="bad", correction="card_stolen"),
    )
    value = encode_native(record)
    headers = sign(value, "gateway-1", KEY)
    assert decode(value, headers, SOURCE, WRITTEN_MS, POLICY) == signed(TOLD)


@pytest.mark.parametrize(
    ("named", "model", "task"),
    [
        (None, "support-large", "support"),
        ("other", "support-large", "other"),
        ("unheard-of", "support-large", "support"),
        (None, "unheard-of", None),
    ],
)
def test_a_task_is_the_one_named_or_the_one_that_claims_the_model(
    named: str | None, model: str, task: str | None
) -> None:
    assert read({**PLAIN, "task": named, "model": model}).task == task


def test_without_an_id_the_place_on_the_topic_is_the_id() -> None:
    assert read({k: v for k, v in PLAIN.items() if k != "event_id"}).event_id == "prompts/2/41"
    assert read({**PLAIN, "event_id": None}).event_id == "prompts/2/41"


def test_fields_that_are_not_named_are_ignored() -> None:
    assert read({**PLAIN, "trace": {"a": [1, 2, {"b": None}]}}) == read(PLAIN)


def test_of_a_field_given_twice_the_last_one_counts_as_everywhere_in_json() -> None:
    value = json.dumps(PLAIN).encode()[:-1] + b', "event_id": "e-2"}'
    assert read(value).event_id.partition("~")[0] == json.loads(value)["event_id"] == "e-2"


def test_users_are_told_apart_and_never_named() -> None:
    one, other = (read({**PLAIN, "user": user}).user_key for user in ("ann", "bob"))
    assert one != other
    assert one is not None
    assert "ann" not in one
    elsewhere = read({**PLAIN, "user": "ann"}, policy=replace(POLICY, user_salt=b"x" * 100))
    assert elsewhere.user_key != one
    assert read({**PLAIN, "user": ""}).user_key is None


# Whose word counts


def test_a_signed_record_may_say_who_served_and_what_the_teacher_answered() -> None:
    event = signed(TOLD)
    assert event.served_by == "student"
    assert event.student == StudentAnswer(
        version="support-v3-1f2e3d4c", label="card_arrival", confidence=0.75
    )
    assert (event.teacher_answer, event.teacher_model) == ("card_lost", "large-1")
    assert event.usage == Usage(prompt_tokens=12, completion_tokens=2)
    assert event.feedback == Feedback(verdict="bad", correction="card_stolen")


def test_an_unsigned_record_cannot_inject_a_label() -> None:
    event = read(TOLD)
    assert (event.served_by, event.student, event.usage) == ("app", None, None)
    assert (event.teacher_answer, event.teacher_model) == (None, None)
    assert event.feedback == Feedback(verdict="bad", correction=None)
    assert event.answer == "card_arrival"


def test_a_signature_over_other_bytes_is_refused() -> None:
    value = json.dumps(TOLD).encode()
    headers = sign(value, "gateway-1", KEY)
    with pytest.raises(InvalidMessage, match="signature does not fit"):
        read(value.replace(b"card_lost", b"card_gone"), headers)


@pytest.mark.parametrize(
    "headers",
    [
        sign(json.dumps(TOLD).encode(), "gateway-1", b"wrong key"),
        sign(json.dumps(TOLD).encode(), "gateway-1", b"another key"),
        sign(json.dumps(TOLD).encode(), "importer", KEY),
        sign(json.dumps(TOLD).encode(), "nobody", KEY),
        sign(json.dumps(TOLD).encode(), "gateway-1", KEY)[:1],
        sign(json.dumps(TOLD).encode(), "gateway-1", KEY)[1:],
        sign(json.dumps(TOLD).encode(), "gateway-1", KEY) * 2,
        ((PRODUCER_HEADER, b"\xff"), (SIGNATURE_HEADER, b"\xff")),
        ((PRODUCER_HEADER, b"gateway-1"), (SIGNATURE_HEADER, b"")),
    ],
)
def test_a_signature_that_does_not_hold_is_refused_and_not_taken_for_none(
    headers: Headers,
) -> None:
    with pytest.raises(InvalidMessage):
        read(TOLD, headers)


def test_a_producer_without_a_key_vouches_for_nothing() -> None:
    value = json.dumps(TOLD).encode()
    keyless = replace(POLICY, producer_keys={"gateway-1": b""})
    with pytest.raises(InvalidMessage, match="do not name"):
        read(value, sign(value, "gateway-1", b""), keyless)


def test_other_headers_do_not_matter() -> None:
    value = json.dumps(TOLD).encode()
    headers = (("ce_id", b"1"), *sign(value, "gateway-1", KEY), ("ce_id", b"2"))
    assert read(value, headers) == signed(TOLD)
    assert read(value, (("ce_id", b"1"),)) == read(TOLD)


def test_served_by_a_student_needs_the_students_answer() -> None:
    with pytest.raises(InvalidMessage, match="served_by is student"):
        signed({**PLAIN, "served_by": "student"})


# The id


def test_the_id_of_an_event_is_ours_and_tells_apart_what_producers_do_not() -> None:
    """TGI's id is empty, LMDeploy's was a number, a cache gives the id of the cached answer."""
    other = changed(PLAIN, "messages.0.content", "Another prompt")
    made = [
        read(PLAIN),
        read(other),
        signed(PLAIN),
        signed(PLAIN, "importer", b"another key"),
        read({**PLAIN, "task": "other"}),
        read({**PLAIN, "event_id": "e-2"}),
        read(PLAIN, source=moved(SOURCE, incarnation="made anew")),
        read({**PLAIN, "event_id": None}),
        read({**PLAIN, "event_id": None}, source=moved(SOURCE, offset=42)),
        read({**PLAIN, "event_id": None}, source=moved(SOURCE, incarnation="made anew")),
    ]
    assert len({event.event_id for event in made}) == len(made)
    assert read(PLAIN, source=moved(SOURCE, offset=99)).event_id == made[0].event_id, "told again"
    assert made[0].event_id.startswith("e-1~"), "the producer's own can be found in it"
    twice = [
        read({**PLAIN, "event_id": "import-1"}, source=moved(SOURCE, incarnation=of)).event_id
        for of in ("", "made anew")
    ]
    assert twice[0] == twice[1], "an import is the same on any topic"
    ours = replace(POLICY, own_producers=frozenset({"gateway-1"}))
    assert signed(PLAIN, policy=ours).event_id == "e-1", "our gateway's are unique as they are"


# The OpenAI pair


def test_an_openai_pair_becomes_an_event_whose_answer_is_the_apps() -> None:
    event = read(PAIR)
    assert event == PromptEvent(
        event_id=event.event_id,
        task="support",
        model="support-large",
        occurred_at=WRITTEN - timedelta(seconds=1),
        messages=(
            Message("system", "Answer with one label."),
            Message("user", "Where is\nmy card?"),
        ),
        answer="card_arrival",
        user_key=user_key("u-7", b"salt"),
        attributes={"region": "eu"},
        asked={"temperature": 0},
        source=SOURCE,
    )


def test_a_signed_pairs_response_is_still_no_label() -> None:
    event = signed(PAIR)
    assert (event.teacher_answer, event.served_by, event.student) == (None, "app", None)
    assert event.usage == Usage(prompt_tokens=30, completion_tokens=3)


def test_a_request_that_got_no_response_is_an_event_without_answer() -> None:
    responses: list[Any] = [None, {"choices": []}, {"choices": [{"message": {"content": None}}]}]
    for response in responses:
        event = read({**PAIR, "response": response})
        assert event.answer is None
        assert event.event_id == "prompts/2/41"
        assert event.occurred_at == WRITTEN


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"n": 2}, "choices"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["audio"]}, "audio"),
        ({"web_search_options": {}}, "tools"),
    ],
)
def test_what_no_student_can_do_is_kept_with_the_reason(asked: dict[str, Any], why: str) -> None:
    event = read({**PAIR, "request": {**PAIR["request"], **asked}})
    assert (event.task, event.past) == ("support", why)


def test_empty_tools_are_no_tools() -> None:
    empties: list[Any] = [None, []]
    for tools in empties:
        assert read({**PAIR, "request": {**PAIR["request"], "tools": tools}}).past == ""
    offered = {"tools": [{"type": "function"}], "tool_choice": "none"}
    event = read({**PAIR, "request": {**PAIR["request"], **offered}})
    assert (event.past, event.asked["tools"]) == ("", offered["tools"]), "asked for, not to be used"


def test_an_assistant_that_only_called_tools_said_nothing() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    event = read(changed(PAIR, "request.messages", messages))
    assert [m.content for m in event.messages] == ["hi", "", "42"]


# What is refused

BAD = {
    "empty": b"",
    "not json": b"not json",
    "an array": b"[]",
    "a number": b"1",
    "null": b"null",
    "an empty object": b"{}",
    "two objects": b"{} {}",
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(),
    "utf-16": json.dumps(PLAIN).encode("utf-16"),
    "cut off": json.dumps(PLAIN).encode()[:-5],
    "another schema": {**PLAIN, "schema": "flywheel.prompt/2"},
    "no schema": {k: v for k, v in PLAIN.items() if k != "schema"},
    "no model": {k: v for k, v in PLAIN.items() if k != "model"},
    "empty model": {**PLAIN, "model": ""},
    "no messages": {k: v for k, v in PLAIN.items() if k != "messages"},
    "empty messages": {**PLAIN, "messages": []},
    "messages as text": {**PLAIN, "messages": "hi"},
    "a message as text": {**PLAIN, "messages": ["hi"]},
    "one message of two as text": {**PLAIN, "messages": [*PLAIN["messages"], "hi"]},
    "unknown role": changed(PLAIN, "messages.0.role", "root"),
    "raw surrogate": json.dumps(PLAIN).encode().replace(b"Where", b"\xed\xa0\x80"),
    "latin-1": json.dumps(PLAIN).encode().replace(b"Where", b"\xe9"),
    "overlong utf-8": json.dumps(PLAIN).encode().replace(b"Where", b"\xc0\xaf"),
    "raw control character": json.dumps(PLAIN).encode().replace(b"Where", b"\x01"),
    "unknown verdict": changed(TOLD, "feedback.verdict", "meh"),
    "deep in an unknown field": b'{"x":' + b"[" * 100_000,
    "deep at the top": b"[" * 100_000,
    "deep objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    "a pair without messages": {"request": {"model": "m"}, "response": None},
    "a pair with an unknown role": changed(PAIR, "request.messages.1.role", "root"),
    "a pair whose request is text": {**PAIR, "request": "hi"},
}
# The prompt can be read: something beside it cannot.
ODD = {
    "too many messages": {**PLAIN, "messages": PLAIN["messages"] * 1001},
    "content as number": changed(PLAIN, "messages.0.content", 1),
    "content as null": changed(PLAIN, "messages.0.content", None),
    "id as number": {**PLAIN, "event_id": 1},
    "empty id": {**PLAIN, "event_id": ""},
    "long id": {**PLAIN, "event_id": "x" * 201},
    "id with newline": {**PLAIN, "event_id": "a\nb"},
    "escaped lone surrogate": json.dumps(PLAIN).encode().replace(b"Where", b"\\ud800"),
    "reversed surrogates": json.dumps(PLAIN).encode().replace(b"Where", b"\\udc00\\ud800"),
    "nul in content": changed(PLAIN, "messages.0.content", "a\0b"),
    "nul in an attribute's name": {**PLAIN, "attributes": {"a\0": "b"}},
    "NaN": json.dumps({**TOLD}).encode().replace(b"0.75", b"NaN"),
    "Infinity": json.dumps({**TOLD}).encode().replace(b"0.75", b"Infinity"),
    "1e999": json.dumps({**TOLD}).encode().replace(b"0.75", b"1e999"),
    "confidence above one": changed(TOLD, "student.confidence", 1.01),
    "negative confidence": changed(TOLD, "student.confidence", -0.01),
    "confidence as text": changed(TOLD, "student.confidence", "0.5"),
    "negative tokens": changed(TOLD, "usage.prompt_tokens", -1),
    "tokens beyond 64 bits": changed(TOLD, "usage.prompt_tokens", 2**70),
    "tokens with a fraction": changed(TOLD, "usage.prompt_tokens", 1.5),
    "unknown server": {**PLAIN, "served_by": "intern"},
    "attribute as number": {**PLAIN, "attributes": {"a": 1}},
    "too many attributes": {**PLAIN, "attributes": {str(i): "" for i in range(51)}},
    "long attribute": {**PLAIN, "attributes": {"a": "x" * 1001}},
    "long user": {**PLAIN, "user": "x" * 501},
    "local time": {**PLAIN, "occurred_at": "2026-11-23T08:00:00"},
    "no time": {**PLAIN, "occurred_at": "yesterday"},
    "time as number": {**PLAIN, "occurred_at": 1795420800},
    "year 1": {**PLAIN, "occurred_at": "0001-01-01T00:00:00+14:00"},
    "year 1970": {**PLAIN, "occurred_at": "1970-01-01T00:00:00Z"},
    "year 9999": {**PLAIN, "occurred_at": "9999-12-31T23:59:59-14:00"},
    "two days ahead": {**PLAIN, "occurred_at": "2026-11-25T09:00:00Z"},
    "a pair with an image": changed(
        PAIR, "request.messages.1.content.0", {"type": "image_url", "image_url": {"url": "x"}}
    ),
    "a pair with a silent user": changed(PAIR, "request.messages.1.content", None),
    "a pair from year 33658": changed(PAIR, "response.created", 10**12),
    "a pair from no time": changed(PAIR, "response.created", 10**30),
    "a pair with nul": changed(PAIR, "response.choices.0.message.content", "\0"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_poison_is_refused_with_a_short_reason(bad: Any) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        read(bad)
    assert 0 < len(str(refusal.value)) <= MAX_REASON_CHARACTERS


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_what_is_odd_at_the_side_costs_itself_and_never_the_prompt(odd: Any) -> None:
    event = read(odd)
    assert event.model in (PLAIN["model"], PAIR["request"]["model"])
    assert 1 <= len(event.messages) <= 1_000
    assert b"\\u0000" not in msgspec.json.encode(event)
    assert EARLIEST <= event.occurred_at <= WRITTEN + MAX_AHEAD


def test_what_can_be_understood_of_an_odd_field_is_kept() -> None:
    assert read({**PLAIN, "attributes": {"a": 1, "b": True, "c": {}, "d": "x"}}).attributes == {
        "a": "1",
        "b": "true",
        "d": "x",
    }
    ada = user_key("7", POLICY.user_salt)
    users: list[Any] = [7, {"id": 7}, {"user_id": "7"}]
    for user in users:
        assert read({**PLAIN, "user": user}).user_key == ada
        assert read(changed(PAIR, "request.user", user)).user_key == ada
    assert read({**PLAIN, "user": ["7"]}).user_key is None
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    times: list[Any] = [noon.timestamp(), int(noon.timestamp() * 1000), "2026-11-23T12:00:00",
                        str(int(noon.timestamp()))]  # fmt: skip
    for time in times:
        assert read({**PLAIN, "occurred_at": time}).occurred_at == noon, time
        assert read(changed(PAIR, "response.created", time)).occurred_at == noon, time
    assert read({**PLAIN, "occurred_at": "yesterday"}).occurred_at == WRITTEN
    assert read({**PLAIN, "event_id": ""}).event_id == "prompts/2/41"
    assert read(changed(PAIR, "response.id", "")).event_id == "prompts/2/41"
    assert read(changed(PAIR, "response.choices", [{"text": "refund"}])).answer == "refund"
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "refund"}]
    assert read(changed(PAIR, "response.choices.0.message.content", parts)).answer == "refund"
    assert read({**PAIR, "response": {"error": {"message": "overloaded"}}}).answer is None
    human = changed(PLAIN, "messages.0.role", "human")
    assert read(human).messages[0].role == "user"


def test_what_holds_an_image_is_read_and_teaches_nobody() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    event = read(changed(PAIR, "request.messages.1.content.0", image))
    assert (event.task, event.past) == ("support", "content")
    assert "base64" not in str(event.messages)


def test_a_record_that_is_well_is_never_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.decode.mend", lambda *about: pytest.fail("mended"))
    for record in (PLAIN, TOLD, PAIR):
        read(record)


@pytest.mark.parametrize(
    "record",
    [
        changed(PLAIN, "messages.0.role", "SECRET-WORD"),
        changed(TOLD, "feedback.verdict", "SECRET-WORD'\n - at nowhere"),
        {**PLAIN, "schema": "SECRET-WORD"},
        changed(PAIR, "request.messages.1.role", "SECRET-WORD"),
    ],
)
def test_a_reason_never_quotes_the_record(record: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        read(record)
    assert "SECRET" not in str(refusal.value)
    assert "nowhere" not in str(refusal.value)


def test_a_tombstone_and_an_unreadable_record_say_what_they_are() -> None:
    with pytest.raises(InvalidMessage, match="tombstone"):
        decode(None, (), SOURCE, WRITTEN_MS, POLICY)
    with pytest.raises(InvalidMessage, match="header name"):
        decode(None, ((UNREADABLE_HEADER, b"header name"),), SOURCE, WRITTEN_MS, POLICY)


def test_the_size_limit_is_in_bytes_and_is_the_policys() -> None:
    value = json.dumps(PLAIN).encode()
    read(value, policy=replace(POLICY, max_bytes=len(value)))
    with pytest.raises(InvalidMessage, match=f"{len(value)} bytes"):
        read(value, policy=replace(POLICY, max_bytes=len(value) - 1))


def test_an_escaped_backslash_before_u0000_is_not_a_nul() -> None:
    event = read(changed(PLAIN, "messages.0.content", r"C:\u0000 and \\u0000"))
    assert event.messages[0].content == r"C:\u0000 and \\u0000"


def test_times_are_utc_whatever_their_offset() -> None:
    event = read({**PLAIN, "occurred_at": "2026-11-23T10:00:00.250+02:00"})
    assert event.occurred_at == datetime(2026, 11, 23, 8, 0, 0, 250_000, tzinfo=UTC)
    assert event.occurred_at.tzinfo is UTC


def test_without_a_time_the_records_own_counts_if_it_is_one() -> None:
    timeless = {k: v for k, v in PLAIN.items() if k != "occurred_at"}
    assert read(timeless).occurred_at == WRITTEN
    for absurd in (-1, 0, 2**62):
        with pytest.raises(InvalidMessage, match="no usable time"):
            read(timeless, ms=absurd)
        assert read(PLAIN, ms=absurd).occurred_at == datetime(2026, 11, 23, 8, tzinfo=UTC)


def test_the_salt_cannot_be_forgotten() -> None:
    with pytest.raises(ValueError, match="user_salt"):
        DecodePolicy(claims={}, user_salt=b"")


def test_secrets_do_not_show_in_the_policys_repr() -> None:
    assert "kkk" not in repr(POLICY)
    assert "another" not in repr(POLICY)
    assert "salt'" not in repr(POLICY)


# The schema


def test_the_published_schema_is_the_one_that_decode_follows() -> None:
    assert json.loads(PUBLISHED.read_text()) == json_schema(), (
        "run `python -m pipelines.records.native > docs/prompt-event.schema.json`"
    )


def test_the_schema_accepts_what_decode_accepts() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for record in (PLAIN, TOLD, {**PLAIN, "more": 1}, {**PLAIN, "event_id": None}):
        validator.validate(record)
        read(record)


@pytest.mark.parametrize(
    "name",
    [
        "another schema", "no model", "empty messages", "content as number", "long id",
        "confidence above one", "negative tokens", "unknown verdict", "unknown server",
        "too many attributes", "long attribute", "attribute as number", "time as number",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_decode_refuses_or_mends(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate({**BAD, **ODD}[name])


def test_every_field_of_the_schema_is_described() -> None:
    described = {"messages", "feedback"}
    for name, field in json_schema()["properties"].items():
        assert "description" in field or name in described, name
