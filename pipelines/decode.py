"""Bytes of one record to a `PromptEvent`, or `InvalidMessage` with the reason.

Two shapes are understood: the native one (`NativeRecord`, published as a JSON Schema) and an
OpenAI request/response pair. What only a trusted producer may say (labels, students, who
served) counts only in a record that carries a valid signature.
"""

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pipelines.errors import InvalidMessage
from pipelines.types import (
    Feedback,
    Message,
    PromptEvent,
    ServedBy,
    SourceOffset,
    StudentAnswer,
    Usage,
)

SCHEMA: Final = "flywheel.prompt/1"
PRODUCER_HEADER = "flywheel-producer"
SIGNATURE_HEADER = "flywheel-signature"
# A reader that could not even take a record apart says so in this header.
UNREADABLE_HEADER = "flywheel-unreadable"

Headers = tuple[tuple[str, bytes], ...]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
# How far a producer's clock may run ahead of the topic's.
MAX_AHEAD = timedelta(days=1)
MAX_REASON_CHARACTERS = 200

Name = Annotated[str, Meta(min_length=1, max_length=200)]
TokenCount = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Attributes = Annotated[
    dict[Annotated[str, Meta(max_length=100)], Annotated[str, Meta(max_length=1000)]],
    Meta(max_length=50),
]


class NativeStudent(Struct, frozen=True, kw_only=True, gc=False):
    """What the student said, whoever served in the end."""

    version: Annotated[Name, Meta(description="The student version, as answers name it.")]
    label: Annotated[str, Meta(max_length=1000, description="Its label.")]
    confidence: Annotated[float, Meta(ge=0, le=1, description="Calibrated, in [0, 1].")]


class NativeUsage(Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of the teacher's call."""

    prompt_tokens: TokenCount = 0
    completion_tokens: TokenCount = 0


class NativeFeedback(Struct, frozen=True, kw_only=True, gc=False):
    """What a person said about the answer."""

    verdict: Literal["good", "bad"]
    correction: Annotated[
        str | None,
        Meta(description="The right label. Counts only in a signed record."),
    ] = None


class NativeRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One production prompt and what became of it. Fields that are not named are ignored."""

    schema: Annotated[Literal["flywheel.prompt/1"], Meta(description="This very text.")]
    event_id: Annotated[
        Name | None,
        Meta(description="Unique and stable over retries. Absent: topic/partition/offset."),
    ] = None
    task: Annotated[
        Name | None,
        Meta(description="A task of the settings. Absent: the task that claims the model."),
    ] = None
    model: Annotated[Name, Meta(description="The model that the app asked for.")]
    occurred_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="RFC 3339, with its offset from UTC. Absent: the record's own time."),
    ] = None
    messages: Annotated[
        tuple[Message, ...],
        Meta(min_length=1, max_length=1000, description="The conversation, oldest first."),
    ]
    answer: Annotated[str | None, Meta(description="What the app received.")] = None
    served_by: Annotated[
        ServedBy, Meta(description="Who answered. Anything but app counts only when signed.")
    ] = "app"
    student: Annotated[NativeStudent | None, Meta(description="Counts only when signed.")] = None
    teacher_answer: Annotated[
        str | None, Meta(description="The teacher's own answer: a label. Only when signed.")
    ] = None
    teacher_model: Annotated[Name | None, Meta(description="Counts only when signed.")] = None
    usage: Annotated[NativeUsage | None, Meta(description="Counts only when signed.")] = None
    feedback: NativeFeedback | None = None
    user: Annotated[
        Annotated[str, Meta(max_length=500)] | None,
        Meta(description="The end user. Kept as a keyed hash only."),
    ] = None
    attributes: Annotated[Attributes, Meta(description="Anything to cut the traffic by.")] = {}


class _TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class _PairMessage(Struct, frozen=True):
    role: str
    content: str | list[_TextPart] | None = None


class _PairRequest(Struct, frozen=True):
    model: Name
    messages: Annotated[list[_PairMessage], Meta(min_length=1, max_length=1000)]
    user: Annotated[str, Meta(max_length=500)] | None = None
    n: int | None = None
    tools: msgspec.Raw | UnsetType = UNSET
    functions: msgspec.Raw | UnsetType = UNSET
    metadata: Attributes | None = None


class _PairAnswer(Struct, frozen=True):
    content: str | None = None


class _PairChoice(Struct, frozen=True):
    message: _PairAnswer


class _PairResponse(Struct, frozen=True):
    choices: Sequence[_PairChoice]
    id: Name | None = None
    created: int | float | None = None
    usage: NativeUsage | None = None


class _Pair(Struct, frozen=True):
    request: _PairRequest
    response: _PairResponse | None = None


class _Shape(Struct, frozen=True):
    """Just enough of a record to tell which shape it was meant to have."""

    schema: Any = None
    request: msgspec.Raw | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePolicy:
    """What the settings say about records: the same for every record of a run."""

    claims: Mapping[str, str]  # model name -> task name
    tasks: frozenset[str] = frozenset()  # the tasks that a record may name itself
    producer_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    user_salt: bytes = field(repr=False)
    max_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        if not self.user_salt:
            raise ValueError("user_salt is empty: user keys would be the same everywhere")


_DECODE_NATIVE = msgspec.json.Decoder(NativeRecord).decode
_DECODE_PAIR = msgspec.json.Decoder(_Pair).decode
_DECODE_SHAPE = msgspec.json.Decoder(_Shape).decode
_ENCODE = msgspec.json.Encoder().encode


def decode(
    value: bytes | None,
    headers: Headers,
    source: SourceOffset,
    timestamp_ms: int,
    policy: DecodePolicy,
) -> PromptEvent:
    """The event that one record tells of. Raises nothing but `InvalidMessage`."""
    if value is None:
        raise InvalidMessage(_why_empty(headers))
    if len(value) > policy.max_bytes:
        raise InvalidMessage(f"{len(value)} bytes; at most {policy.max_bytes} are accepted")
    signed = bool(headers) and _is_signed(value, headers, policy.producer_keys)
    try:
        record = _DECODE_NATIVE(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        event = _decode_other(value, problem, source, timestamp_ms, signed, policy)
    else:
        event = _from_native(record, source, timestamp_ms, signed, policy)
    # Databases and C libraries end a text at NUL. Rare, so the exact check is not on the way.
    if b"\\" in value and b"\\u0000" in value and _has_nul(event):
        raise InvalidMessage("a text contains the NUL character")
    return event


def sign(value: bytes, producer: str, key: bytes) -> Headers:
    """The headers by which `decode` knows that `producer` wrote exactly this value."""
    return ((PRODUCER_HEADER, producer.encode()), (SIGNATURE_HEADER, _signature(value, key)))


def encode_native(record: NativeRecord) -> bytes:
    """The record's value. Fields that are absent are left out."""
    return _ENCODE(record)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a native record, as published in docs/prompt-event.schema.json."""
    (schema,), components = msgspec.json.schema_components(
        [NativeRecord], ref_template="#/$defs/{name}"
    )
    root: dict[str, Any] = components.pop("NativeRecord")
    assert schema == {"$ref": "#/$defs/NativeRecord"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A production prompt, as flywheel reads it from its topic",
        **{key: value for key, value in root.items() if key != "title"},
        "$defs": components,
    }


def _from_native(
    record: NativeRecord,
    source: SourceOffset,
    timestamp_ms: int,
    signed: bool,
    policy: DecodePolicy,
) -> PromptEvent:
    for message in record.messages:
        if message.role not in ROLES:
            raise InvalidMessage("a message's role is not one that chat models know")
    if signed and record.served_by == "student" and record.student is None:
        raise InvalidMessage("served_by is student, but there is no student's answer")
    task = record.task
    if task is None or task not in policy.tasks:
        task = policy.claims.get(record.model)
    return PromptEvent(
        event_id=_event_id(record.event_id, source),
        task=task,
        model=record.model,
        occurred_at=_moment(record.occurred_at, timestamp_ms),
        messages=record.messages,
        answer=record.answer,
        feedback=_feedback(record.feedback, signed) if record.feedback else None,
        user_key=user_key(record.user, policy.user_salt) if record.user else None,
        attributes=record.attributes,
        source=source,
        # What counts only from a producer that signs.
        served_by=record.served_by if signed else "app",
        student=_student(record.student) if signed and record.student else None,
        teacher_answer=record.teacher_answer if signed else None,
        teacher_model=record.teacher_model if signed else None,
        usage=_usage(record.usage) if signed and record.usage else None,
    )


def _feedback(feedback: NativeFeedback, signed: bool) -> Feedback:
    return Feedback(verdict=feedback.verdict, correction=feedback.correction if signed else None)


def _student(student: NativeStudent) -> StudentAnswer:
    return StudentAnswer(
        version=student.version, label=student.label, confidence=student.confidence
    )


def _usage(usage: NativeUsage) -> Usage:
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def _decode_other(
    value: bytes,
    problem: Exception,
    source: SourceOffset,
    timestamp_ms: int,
    signed: bool,
    policy: DecodePolicy,
) -> PromptEvent:
    """A pair if it is one; else `InvalidMessage`, about the shape that was meant."""
    try:
        shape = _DECODE_SHAPE(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        raise InvalidMessage(_reason(broken)) from None
    if shape.request is UNSET:
        if shape.schema is None:
            raise InvalidMessage(
                f'neither `"schema": "{SCHEMA}"` nor an OpenAI request/response pair'
            )
        raise InvalidMessage(_reason(problem))
    try:
        pair = _DECODE_PAIR(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        raise InvalidMessage(_reason(broken)) from None
    return _from_pair(pair, source, timestamp_ms, signed, policy)


def _from_pair(
    pair: _Pair, source: SourceOffset, timestamp_ms: int, signed: bool, policy: DecodePolicy
) -> PromptEvent:
    """The response is the app's answer, whoever made it: never a label."""
    request, response = pair.request, pair.response
    answer = event_id = occurred_at = usage = None
    if response is not None:
        answer = response.choices[0].message.content if response.choices else None
        event_id = response.id
        occurred_at = _from_unix(response.created)
        usage = response.usage if signed else None
    # No student can do these, so no task claims the request.
    beyond_students = (
        any(
            asked is not UNSET and bytes(asked) not in (b"null", b"[]")
            for asked in (request.tools, request.functions)
        )
        or (request.n or 1) > 1
    )
    return PromptEvent(
        event_id=_event_id(event_id, source),
        task=None if beyond_students else policy.claims.get(request.model),
        model=request.model,
        occurred_at=_moment(occurred_at, timestamp_ms),
        messages=tuple(map(_plain_message, request.messages)),
        answer=answer,
        usage=_usage(usage) if usage else None,
        user_key=user_key(request.user, policy.user_salt) if request.user else None,
        attributes=request.metadata or {},
        source=source,
    )


def _plain_message(message: _PairMessage) -> Message:
    if message.role not in ROLES:
        raise InvalidMessage("a message's role is not one that chat models know")
    content = message.content
    if isinstance(content, str):
        return Message(message.role, content)
    if content is None:
        # An assistant that only called tools says nothing; nobody else may.
        if message.role != "assistant":
            raise InvalidMessage("a message has no content")
        return Message(message.role, "")
    return Message(message.role, "\n".join(part.text for part in content))


@lru_cache(maxsize=4096)  # users come back
def user_key(user: str, salt: bytes) -> str:
    """The keyed hash that stands for a user everywhere behind this point."""
    if len(salt) > 64:  # the longest key that blake2b takes
        salt = blake2b(salt).digest()
    return blake2b(user.encode(), key=salt, digest_size=16).hexdigest()


def _event_id(given: str | None, source: SourceOffset) -> str:
    if given is None:
        return f"{source.topic}/{source.partition}/{source.offset}"
    if not given.isprintable():
        raise InvalidMessage("event_id contains characters that do not print")
    return given


def _from_unix(created: int | float | None) -> datetime | None:
    if not created:
        return None
    try:
        return datetime.fromtimestamp(created, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidMessage("response.created is not a time") from None


def _moment(given: datetime | None, timestamp_ms: int) -> datetime:
    """When it happened, in UTC. The topic's own time bounds what a producer may claim."""
    if given is None:
        written = _record_time(timestamp_ms)
        if written is None:
            raise InvalidMessage("no occurred_at, and the record has no usable time of its own")
        return written
    if not EARLIEST <= given < LATEST:
        raise InvalidMessage("the event's time is before 2000 or after 2099")
    # Nearly all are within the bound of their record's minute; only the others need the exact one.
    if given > _latest_in_minute(timestamp_ms // 60_000):
        written = _record_time(timestamp_ms)
        if written is not None and given - written > MAX_AHEAD:
            raise InvalidMessage("the event's time is more than a day after its record was written")
    return given if given.tzinfo is UTC else given.astimezone(UTC)


@lru_cache(maxsize=64)
def _latest_in_minute(minute: int) -> datetime:
    """Up to this time an event is fine in any record of the minute, counted from 1970."""
    written = _record_time(minute * 60_000)
    return EARLIEST if written is None else written + MAX_AHEAD


def _record_time(timestamp_ms: int) -> datetime | None:
    if not _EARLIEST_MS <= timestamp_ms < _LATEST_MS:
        return None
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC)


_EARLIEST_MS = int(EARLIEST.timestamp() * 1000)
_LATEST_MS = int(LATEST.timestamp() * 1000)


def _is_signed(value: bytes, headers: Headers, keys: Mapping[str, bytes]) -> bool:
    """False without a signature. A signature that does not hold is never just ignored."""
    producer = signature = None
    for name, content in headers:
        if name == PRODUCER_HEADER:
            if producer is not None:
                raise InvalidMessage(f"more than one header {PRODUCER_HEADER}")
            producer = content
        elif name == SIGNATURE_HEADER:
            if signature is not None:
                raise InvalidMessage(f"more than one header {SIGNATURE_HEADER}")
            signature = content
    if producer is None and signature is None:
        return False
    if producer is None or signature is None:
        raise InvalidMessage("only one of the headers that make up a signature is there")
    key = keys.get(producer.decode(errors="replace"))
    if not key:
        raise InvalidMessage("signed by a producer that the settings do not name")
    if not hmac.compare_digest(_signature(value, key), signature):
        raise InvalidMessage("the signature does not fit: wrong key, or changed on the way")
    return True


def _signature(value: bytes, key: bytes) -> bytes:
    signer = _signer(key).copy()
    signer.update(value)
    return signer.hexdigest().encode()


@lru_cache(maxsize=64)
def _signer(key: bytes) -> hmac.HMAC:
    """What every signature with this key begins with: setting it up takes as long as a record."""
    return hmac.new(key, digestmod="sha256")


def _why_empty(headers: Headers) -> str:
    for name, content in headers:
        if name == UNREADABLE_HEADER:
            return content.decode(errors="replace")[:MAX_REASON_CHARACTERS]
    return "no value (a tombstone)"


def _has_nul(event: PromptEvent) -> bool:
    return b"\\u0000" in _ENCODE(event).replace(b"\\\\", b"")


def _reason(problem: Exception) -> str:
    """Why, without a word of the record: reasons are logged and shown, prompts are not."""
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if isinstance(problem, UnicodeDecodeError):
        return "not UTF-8"
    text = re.sub(r"(Invalid (?:enum )?value) .* - at", r"\1 - at", str(problem), flags=re.DOTALL)
    return text[:MAX_REASON_CHARACTERS]


if __name__ == "__main__":
    print(msgspec.json.format(_ENCODE(json_schema()), indent=2).decode())
