"""A chat request, as the OpenAI protocol has it: what of it decides anything here.

Read in one way wherever it comes from: through the gateway, or as a pair in somebody's log.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from pipelines.types import Message

# Why no student may answer a request, whatever it would say.
Past = Literal[
    "tools", "content", "choices", "format", "logprobs", "audio", "endpoint", "long", "state",
    "malformed",
]  # fmt: skip
# And why the student's answer was not given: the request's own schema does not take it.
NOT_ALLOWED: Final = "not_allowed"
STORED: Final = "stored"  # or the teacher is to keep the answer, for what may come later
NOT_ANSWERED: Final = frozenset({NOT_ALLOWED, STORED})  # such requests teach, as all others

# What of a request, beside its messages, decides about the answer: the teacher is asked with it.
ASKED: Final = (
    "response_format", "tools", "tool_choice", "reasoning_effort", "verbosity", "stop", "seed",
    "temperature", "top_p",
)  # fmt: skip
LIMIT: Final = "max_tokens"  # the app's own limit on an answer's tokens, whatever it calls it

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal"})


class WireMessage(Struct, frozen=True):
    role: str
    content: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None


class ChatRequest(Struct, frozen=True):
    """The fields that decide anything here. All others are the teacher's business.

    Only what a prompt is made of has a type: what stands beside it may be odd, as apps are.
    """

    model: str
    messages: list[WireMessage]
    stream: Any = None
    stream_options: Any = None
    n: Any = None
    user: Any = None
    safety_identifier: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    response_format: Any = None
    logprobs: Any = None
    tools: Any = None
    functions: Any = None
    tool_choice: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    stop: Any = None
    seed: Any = None
    temperature: Any = None
    top_p: Any = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        options = self.stream_options
        return isinstance(options, dict) and bool(options.get("include_usage"))

    @property
    def token_limit(self) -> int | None:
        """What the app allows for an answer; None where it does not say, or says no number."""
        for asked in (self.max_completion_tokens, self.max_tokens):
            if isinstance(asked, int) and asked:
                return asked
        return None

    def asked(self) -> dict[str, Any]:
        """What decides about the answer, beside the messages; only what is there."""
        said = {name: getattr(self, name) for name in ASKED}
        return known_asked({**said, LIMIT: self.token_limit})


def known_asked(said: Mapping[str, Any]) -> dict[str, Any]:
    """What of this the teacher is asked with: a limit that is none costs itself alone."""
    found = {name: said[name] for name in ASKED if said.get(name) is not None}
    limit = said.get(LIMIT)
    return found | ({LIMIT: limit} if type(limit) is int and limit > 0 else {})


class Attachment(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An image, a sound or a file of a message: never kept, only what tells it from others."""

    message: int  # its place among the messages, from 0
    type: str
    media_type: str = ""
    bytes: int = 0  # of an address: of its text
    sha256: str = ""


def why_past(request: ChatRequest) -> Past | None:
    """What the request asks for that no student can do; None: nothing."""
    if wants_a_tool(request.tools, request.tool_choice) or request.web_search_options is not None:
        return "tools"
    if request.functions and request.function_call != "none":
        return "tools"
    if request.n not in (None, 1):
        return "choices"
    if request.logprobs:
        return "logprobs"
    if request.audio is not None or request.modalities not in (None, [], ["text"]):
        return "audio"
    if not all(map(is_text, request.messages)):
        return "content"
    return None


def wants_a_tool(tools: Any, tool_choice: Any) -> bool:
    """Whether the answer may be a tool's call."""
    return bool(tools) and tool_choice != "none"


def is_text(message: WireMessage) -> bool:
    """Whether a student can read all of it."""
    if message.role not in _ROLES or message.function_call:
        return False
    content = message.content
    if isinstance(content, list):
        return all(_text_part(part) is not None for part in content)
    return _text_part(content) is not None or (content is None and bool(message.tool_calls))


def plain_messages(messages: Sequence[WireMessage]) -> tuple[Message, ...]:
    """The conversation as text: what is none is left out (see `why_past`, `attachments`)."""
    return tuple(
        Message(
            message.role,
            _text(message.content),
            message.tool_calls or None,
            message.tool_call_id if isinstance(message.tool_call_id, str) else None,
        )
        for message in messages
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(filter(None, map(_text_part, content)))
    return _text_part(content) or ""


def _text_part(part: Any) -> str | None:
    """None: not text."""
    if isinstance(part, dict):
        kind = part.get("type", "text")
        if isinstance(kind, str) and kind not in _TEXTS:
            return None
        part = part.get("text", part.get("refusal"))
    if isinstance(part, int | float) and not isinstance(part, bool):
        return str(part)
    return part if isinstance(part, str) else None


def attachments(messages: Sequence[WireMessage]) -> tuple[Attachment, ...]:
    """What of the messages is no text. Reads and hashes all of it: not for an event loop."""
    return tuple(
        _attachment(place, part)
        for place, message in enumerate(messages)
        if isinstance(message.content, list)
        for part in message.content
        if _text_part(part) is None
    )


def _attachment(place: int, part: Any) -> Attachment:
    kind = part.get("type") if isinstance(part, dict) else None
    held = max(_strings(part), key=len, default="")
    content, media_type = held.encode("utf-8", "replace"), ""
    if held.startswith("data:"):
        about, _, inside = held[5:].partition(",")
        media_type, content = about.partition(";")[0][:100], inside.encode("utf-8", "replace")
    try:
        if media_type or len(content) > 256:
            content = base64.b64decode(content, validate=True)
    except binascii.Error:
        pass
    return Attachment(
        message=place,
        type=str(kind or "unknown")[:100],
        media_type=media_type,
        bytes=len(content),
        sha256=sha256(content).hexdigest(),
    )


def _strings(node: Any) -> Iterator[str]:
    """Every text in a part but its type."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for name, child in node.items():
            if name != "type":
                yield from _strings(child)
    elif isinstance(node, list):
        for child in node:
            yield from _strings(child)


decode_chat = msgspec.json.Decoder(ChatRequest).decode
