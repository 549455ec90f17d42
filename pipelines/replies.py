"""What a teacher's reply says, whatever dialect of the chat protocol its server speaks.

Only a reply without choices is none. Anything odd beside the answer costs itself, not the answer.
"""

import json
from typing import Any

import msgspec
from msgspec import Struct

from pipelines.types import Usage

# Why an answer ended before it was whole, in the words of the servers that are in use, in lower
# case. Any other word for an end is one: servers have dozens.
CUT = frozenset({"length", "max_tokens", "model_length", "max_length"})
NOT_SAID = frozenset({
    "content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content",
    "spii", "tool_calls", "tool_use", "function_call", "error", "abort", "aborted", "cancelled",
    "insufficient_system_resource", "malformed_function_call",
})  # fmt: skip
THOUGHTS = frozenset({"thinking", "reasoning", "redacted_thinking", "reasoning_text"})
# Everything that is raised for bytes that are not what they should be.
MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


class Completion(Struct, frozen=True, kw_only=True):
    """One answer in the protocol's terms: what a teacher said, or what a student is to say."""

    content: str | None = None
    finish_reason: str | None = None
    id: str | None = None
    model: str | None = None
    usage: Usage | None = None

    @property
    def whole(self) -> str | None:
        """The content when it is all there: a cut answer could be read as another label."""
        return None if self.unusable else self.content

    @property
    def unusable(self) -> str:
        """Why the content is no answer; empty: it is one."""
        reason = (self.finish_reason or "").casefold()
        if reason in CUT:
            return "the answer was cut at the token limit (teacher.max_tokens)"
        if reason in NOT_SAID:
            return f"the teacher ended its answer with {reason}"
        if not (self.content or "").strip():
            return "the answer is empty"
        return "" if reason else "the answer has no end"


def read_reply(body: bytes) -> Completion | None:
    """What a completion says, or None when it is no completion."""
    reply = read_object(body)
    if reply is None:
        return None
    if not isinstance(reply.get("choices"), list):
        return None
    choice = first_choice(reply) or {}
    message = choice.get("message")
    content = text_of(message.get("content")) if isinstance(message, dict) else None
    return Completion(
        content=text_of(choice.get("text")) if content is None else content,
        # Where the server names no reason, what it has sent is what it had to say.
        finish_reason=_word(choice.get("finish_reason")) or "stop",
        id=_word(reply.get("id")),
        model=_word(reply.get("model")),
        usage=usage_of(reply.get("usage")),
    )


def read_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object, forgiving what some servers write: half an emoji, NaN, bytes of no text."""
    try:
        found = msgspec.json.decode(body)
    except MALFORMED:
        try:
            found = json.loads(body.decode("utf-8", "replace"))
        except MALFORMED:
            return None
    return found if isinstance(found, dict) else None


def first_choice(reply: dict[str, Any]) -> dict[str, Any] | None:
    """The choice with index 0, or the first one."""
    choices = reply.get("choices")
    if not isinstance(choices, list):
        return None
    found = [choice for choice in choices if isinstance(choice, dict)]
    return next((one for one in found if one.get("index", 0) == 0), found[0] if found else None)


def text_of(content: object) -> str | None:
    """Content as text: of a list of parts those that are no thoughts."""
    if isinstance(content, str):
        return _storable(content)
    if isinstance(content, dict):
        return None if str(content.get("type")) in THOUGHTS else text_of(content.get("text"))
    if isinstance(content, list):
        parts = [text for part in content if (text := text_of(part)) is not None]
        return "".join(parts) if parts else None
    return None


def usage_of(usage: object) -> Usage | None:
    """The tokens that were used; None where the server does not say, or says what cannot be."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    if (prompt or 0) < 0 or (completion or 0) < 0:
        return None
    return Usage(prompt_tokens=prompt or 0, completion_tokens=completion or 0)


def _count(value: object) -> int | None:
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return None


def _word(value: object) -> str | None:
    return _storable(value) if isinstance(value, str) and value else None


def _storable(text: str) -> str:
    """Without NUL, and with half of a surrogate pair as what cannot be shown."""
    if text.isascii():
        return text.replace("\0", "")
    return text.replace("\0", "").encode("utf-8", "replace").decode()
