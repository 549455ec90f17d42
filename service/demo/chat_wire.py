"""The chat completions protocol as the scripted teacher speaks it: requests, replies, errors."""

import json
import math
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

HEADERS = {"x-scripted-teacher": "1"}
FINGERPRINT = "scripted"
TOKENS_PER_WORD = 1.3


class Part(BaseModel):
    type: str
    text: str = ""


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    include_usage: bool = False


class Chat(BaseModel):
    """What is read of a chat completion request; the rest is accepted and ignored."""

    model: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def last_user_text(self) -> str:
        return next((item.text for item in reversed(self.messages) if item.role == "user"), "")

    @property
    def prompt_tokens(self) -> int:
        return sum(count_tokens(item.text) for item in self.messages)


def count_tokens(text: str) -> int:
    return math.ceil(len(text.split()) * TOKENS_PER_WORD)


def messages_hash(chat: Chat) -> str:
    canonical = [[item.role, item.text] for item in chat.messages]
    return sha256(json.dumps(canonical, ensure_ascii=False).encode()).hexdigest()


def error_reply(status: int, message: str, kind: str, code: str | None = None) -> Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=HEADERS)


def usage(chat: Chat, answer: str) -> dict[str, int]:
    completion = count_tokens(answer) * chat.n
    return {
        "prompt_tokens": chat.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": chat.prompt_tokens + completion,
    }


def _head(reply_id: str, chat: Chat, kind: str) -> dict[str, Any]:
    return {
        "id": reply_id,
        "object": kind,
        "created": int(time.time()),
        "model": chat.model,
        "system_fingerprint": FINGERPRINT,
    }


def plain_reply(reply_id: str, chat: Chat, answer: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer, "refusal": None}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
        for index in range(chat.n)
    ]
    head = _head(reply_id, chat, "chat.completion")
    return {**head, "choices": choices, "usage": usage(chat, answer)}


def stream_reply(reply_id: str, chat: Chat, answer: str) -> Iterator[str]:
    """Server-sent events: the role, the answer in pieces, the end, the usage if asked for."""
    head = _head(reply_id, chat, "chat.completion.chunk")
    asked = chat.stream_options is not None and chat.stream_options.include_usage
    rest = {"usage": None} if asked else {}
    pieces = [answer[at : at + 6] for at in range(0, len(answer), 6)]
    deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces), {}]
    for delta in deltas:
        finish = None if delta else "stop"
        choices = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            for index in range(chat.n)
        ]
        yield _event({**head, "choices": choices, **rest})
    if asked:
        yield _event({**head, "choices": [], "usage": usage(chat, answer)})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
