"""The OpenAI chat protocol on the wire: what a request may hold, what an answer looks like."""

import json
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pipelines.chat_request import ChatRequest, decode_chat
from pipelines.records.mending import storable
from pipelines.replies import MALFORMED, Completion, first_choice, read_object, text_of, usage_of
from pipelines.types import Usage

ID_PREFIX = "chatcmpl-"
EVENT_STREAM = "text/event-stream"


class Envelope(Struct, frozen=True):
    """What every request must have, whatever else is in it."""

    model: str
    stream: Any = None


class _WireUsage(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _AnswerMessage(Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class _Choice(Struct, frozen=True):
    message: _AnswerMessage
    index: int = 0
    finish_reason: Literal["stop"] = "stop"
    logprobs: None = None


class _WireCompletion(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[_Choice]
    usage: _WireUsage
    object: Literal["chat.completion"] = "chat.completion"


class _Delta(Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class _ChunkChoice(Struct, frozen=True):
    delta: _Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class _Chunk(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[_ChunkChoice]
    usage: _WireUsage | None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class _Error(Struct, frozen=True):
    message: str
    type: str
    code: str
    param: str | None = None


class _ErrorBody(Struct, frozen=True):
    error: _Error


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
encode = msgspec.json.Encoder().encode


def read_request(body: bytes) -> tuple[ChatRequest | None, Envelope | None]:
    """The request, where it can be read, and at least its envelope; None: it has no model."""
    try:
        request = decode_chat(body)
    except MALFORMED:
        pass
    else:
        return request, Envelope(request.model, request.stream)
    # Half an emoji, NaN, or messages of another kind.
    read = read_object(body)
    found = storable(read)
    if read is None or found.get("model") != read.get("model"):  # a name that nobody can have
        return None, None
    return _converted(found, ChatRequest), _converted(found, Envelope)


def _converted(found: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError:
        return None


def replace_fields(body: bytes, new: dict[str, Any], drop: tuple[str, ...] = ()) -> bytes:
    """The same request with some fields set or gone; the bytes of all others stay.

    What only lenient readers take (half an emoji, NaN) is written again as it came.
    """
    try:
        fields = _decode_fields(body)
    except MALFORMED:
        odd = json.loads(body.decode("utf-8", "replace"))
        kept = {name: value for name, value in odd.items() if name not in drop}
        return json.dumps(kept | new).encode()
    for name in drop:
        fields.pop(name, None)
    for name, value in new.items():
        fields[name] = msgspec.Raw(encode(value))
    return encode(fields)


def completion(said: Completion, *, event_id: str, model: str, created: int) -> bytes:
    """A whole answer."""
    return encode(
        _WireCompletion(
            id=ID_PREFIX + event_id,
            created=created,
            model=model,
            choices=[_Choice(message=_AnswerMessage(content=said.content or ""))],
            usage=_wire_usage(said.usage),
        )
    )


def chunks(said: Completion, *, event_id: str, model: str, created: int, with_usage: bool) -> bytes:
    """The same answer as a stream of server-sent events."""
    name = ID_PREFIX + event_id

    def event(choices: list[_ChunkChoice], usage: _WireUsage | None = None) -> bytes:
        chunk = _Chunk(id=name, created=created, model=model, choices=choices, usage=usage)
        return b"data: " + encode(chunk) + b"\n\n"

    parts = [
        event([_ChunkChoice(delta=_Delta(role="assistant", content=said.content or ""))]),
        event([_ChunkChoice(delta=_Delta(), finish_reason=said.finish_reason or "stop")]),
    ]
    if with_usage:
        parts.append(event([], _wire_usage(said.usage)))
    return b"".join([*parts, b"data: [DONE]\n\n"])


def error_body(message: str, *, type: str, code: str) -> bytes:
    """An error as OpenAI's clients read it."""
    return encode(_ErrorBody(_Error(message=message, type=type, code=code)))


class StreamReader:
    """Listens to a teacher's stream that is passed on, and puts its answer together."""

    def __init__(self) -> None:
        self.ended = False  # the answer is whole, whatever still follows
        self._tail = b""
        self._content: list[str] = []
        self._finish: str | None = None
        self._about: dict[str, str] = {}
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def close(self) -> None:
        """The stream has come to its end, announced or not."""
        self.ended = True

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.ended = True
            return
        chunk = read_object(data)
        if chunk is None:
            return
        for name in ("id", "model"):
            if isinstance(said := chunk.get(name), str):
                self._about[name] = said
        self._usage = usage_of(chunk.get("usage")) or self._usage
        choice = first_choice(chunk)
        if choice is None or choice.get("index", 0) != 0:
            return
        delta = choice.get("delta")
        self._content.append(
            (text_of(delta.get("content")) if isinstance(delta, dict) else "") or ""
        )
        if reason := choice.get("finish_reason"):
            self.ended, self._finish = True, str(reason)

    def completion(self) -> Completion:
        """What was said. Without an end there is no answer."""
        self.feed(b"\n")  # the last line may lack it
        return Completion(
            content="".join(self._content) if self.ended else None,
            finish_reason=self._finish,
            id=self._about.get("id"),
            model=self._about.get("model"),
            usage=self._usage,
        )


def _wire_usage(usage: Usage | None) -> _WireUsage:
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return _WireUsage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )
