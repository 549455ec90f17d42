"""An OpenAI request with its response, as an app or a proxy logs them.

The response is the app's answer, whoever made it: never a label.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pipelines.chat_request import ChatRequest, WireMessage, plain_messages, why_past
from pipelines.errors import InvalidMessage
from pipelines.records.common import (
    Attributes,
    DecodePolicy,
    Name,
    given_id,
    moment,
    refuse_unknown_role,
    user_key,
)
from pipelines.records.native import NativeUsage, native_usage
from pipelines.types import PromptEvent, SourceOffset

MARK = "request"  # the field by which the shape is known


class _PairRequest(ChatRequest, frozen=True, kw_only=True):
    model: Name
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=1000)]
    user: Annotated[str, Meta(max_length=500)] | None = None
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


_DECODE = msgspec.json.Decoder(_Pair).decode


def read_pair(
    value: bytes, source: SourceOffset, timestamp_ms: int, signed: bool, policy: DecodePolicy
) -> PromptEvent:
    """Raises `InvalidMessage`, or what msgspec raises for another form."""
    pair = _DECODE(value)
    request, response = pair.request, pair.response
    answer = source_id = occurred_at = usage = None
    if response is not None:
        answer = response.choices[0].message.content if response.choices else None
        source_id = response.id
        occurred_at = _from_unix(response.created)
        usage = response.usage if signed else None
    for message in request.messages:
        refuse_unknown_role(message.role)
        if message.content is None and message.role != "assistant":  # one that only called tools
            raise InvalidMessage("a message has no content")
    return PromptEvent(
        event_id=given_id(source_id),
        task=policy.claims.get(request.model),
        model=request.model,
        occurred_at=moment(occurred_at, timestamp_ms),
        messages=plain_messages(request.messages),
        asked=request.asked(),
        past=why_past(request) or "",
        answer=answer,
        usage=native_usage(usage) if usage else None,
        user_key=user_key(request.user, policy.user_salt) if request.user else None,
        attributes=request.metadata or {},
        source=source,
    )


def _from_unix(created: int | float | None) -> datetime | None:
    if not created:
        return None
    try:
        return datetime.fromtimestamp(created, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidMessage("response.created is not a time") from None
