"""Bytes of one record to a `PromptEvent`, or `InvalidMessage` with the reason.

The shapes that are understood lie in `pipelines.records`, a file each. What only a trusted
producer may say (labels, students, who served) counts only in a record with a valid signature.
"""

import re
from collections.abc import Callable, Mapping

import msgspec

from pipelines.errors import InvalidMessage
from pipelines.identities import event_identity
from pipelines.records import openai_pair
from pipelines.records.common import DecodePolicy
from pipelines.records.mending import mend
from pipelines.records.native import SCHEMA, NativeRecord, from_native
from pipelines.records.signature import signer_of
from pipelines.types import Headers, PromptEvent, SourceOffset

# A reader that could not even take a record apart says so in this header.
UNREADABLE_HEADER = "flywheel-unreadable"
MAX_REASON_CHARACTERS = 200

Read = Callable[[bytes, SourceOffset, int, bool, DecodePolicy], PromptEvent]
# Shapes beside the native one, by the field that each is known by; the first that is there counts.
OTHER_SHAPES: Mapping[str, Read] = {openai_pair.MARK: openai_pair.read_pair}

_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_DECODE_NATIVE = msgspec.json.Decoder(NativeRecord).decode
_DECODE_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
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
    producer = signer_of(value, headers, policy.producer_keys) if headers else None
    signed = producer is not None
    try:
        event = _read(value, source, timestamp_ms, signed, policy)
    except InvalidMessage as problem:
        mended = mend(value, timestamp_ms)
        if mended is None:
            raise
        try:
            event = _read(mended, source, timestamp_ms, signed, policy)
        except InvalidMessage:
            raise problem from None  # of the record as it came
    if event.event_id and producer in policy.own_producers:
        return event
    identity = event_identity(
        event.event_id, _ENCODE(event.messages), task=event.task, producer=producer, source=source
    )
    return msgspec.structs.replace(event, event_id=identity)


def _read(
    value: bytes, source: SourceOffset, timestamp_ms: int, signed: bool, policy: DecodePolicy
) -> PromptEvent:
    try:
        record = _DECODE_NATIVE(value)
    except _BROKEN as problem:
        event = _decode_other(value, problem, source, timestamp_ms, signed, policy)
    else:
        event = from_native(record, source, timestamp_ms, signed, policy)
    # Databases and C libraries end a text at NUL. Rare, so the exact check is not on the way.
    if b"\\" in value and b"\\u0000" in value and _has_nul(event):
        raise InvalidMessage("a text contains the NUL character")
    return event


def _decode_other(
    value: bytes,
    problem: Exception,
    source: SourceOffset,
    timestamp_ms: int,
    signed: bool,
    policy: DecodePolicy,
) -> PromptEvent:
    """In another shape, if it is in one; else `InvalidMessage`, about the shape that was meant."""
    try:
        fields = _DECODE_FIELDS(value)
        for mark, read in OTHER_SHAPES.items():
            if mark in fields:
                return read(value, source, timestamp_ms, signed, policy)
    except _BROKEN as broken:
        raise InvalidMessage(_reason(broken)) from None
    if bytes(fields.get("schema", b"null")) == b"null":
        raise InvalidMessage(f'neither `"schema": "{SCHEMA}"` nor an OpenAI request/response pair')
    raise InvalidMessage(_reason(problem))


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
