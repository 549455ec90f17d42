"""The Responses API on the wire: a request as a chat, an answer as a response.

What the state of an account decides (an earlier response, a conversation, a stored prompt, work in
the background) no student knows; what is to be stored there, only the teacher can store.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from pipelines.chat_request import ChatRequest, WireMessage
from pipelines.records.mending import storable
from pipelines.replies import Completion, read_object, text_of, usage_of
from pipelines.types import Usage
from service.gateway.wire import Envelope, encode, replace_fields

STATE = ("previous_response_id", "conversation", "prompt", "background")
ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
NO_TEXT = ("reasoning",)  # items that say nothing of the conversation
ECHOED: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True,
    "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
    "top_p": 1.0, "truncation": "disabled", "user": None,
}  # fmt: skip


class ResponsesRequest(ChatRequest, frozen=True, kw_only=True):
    """The request as a chat, and what the answer has to repeat of it."""

    names_state: bool = False  # something that is kept elsewhere is part of the prompt
    stores: bool = True  # the answer is to be kept there, for what comes later
    echoed: Mapping[str, Any] = MappingProxyType({})


class ResponsesDialect:
    """`POST /v1/responses`, as `service.gateway.dialects.Dialect` says."""

    path = "/responses"

    def read_request(self, body: bytes) -> tuple[ChatRequest | None, Envelope | None]:
        """The request, where it can be read, and at least its envelope; None: it has no model."""
        found = read_object(body)
        if found is not None and found.get("model") is None and found.get("prompt"):
            return None, Envelope("", found.get("stream"))  # the stored prompt names its model
        if found is None or not isinstance(found.get("model"), str):
            return None, None
        wanted = storable(found)
        if wanted["model"] != found["model"]:  # a name that nobody can have
            return None, None
        envelope = Envelope(wanted["model"], wanted.get("stream"))
        messages = _messages(wanted)
        return (None if messages is None else _as_chat(wanted, messages)), envelope

    def state(self, request: ChatRequest) -> Literal["needed", "kept", ""]:
        """Whether the request needs what is kept elsewhere, or wants its answer kept there."""
        if not isinstance(request, ResponsesRequest):
            return ""
        return "needed" if request.names_state else "kept" if request.stores else ""

    def bounded(
        self, body: bytes, request: ChatRequest, *, model: str, limit: tuple[str, int], told: str
    ) -> bytes:
        """The app's request with our model, a bounded answer, and never as a stream."""
        new: dict[str, Any] = {"model": model, "max_output_tokens": limit[1]}
        if told:
            new["instructions"] = told
        return replace_fields(body, new, drop=("stream", "stream_options"))

    def read_reply(self, body: bytes) -> Completion | None:
        """What a response says, or None when it is no response."""
        found = read_object(body)
        return None if found is None else _completion(found)

    def listener(self) -> "ResponseReader":
        return ResponseReader()

    def whole(
        self, said: Completion, request: ChatRequest | None, *, name: str, model: str, created: int
    ) -> bytes:
        return encode(_response(said, request, name, model, created))

    def streamed(
        self, said: Completion, request: ChatRequest | None, *, name: str, model: str, created: int
    ) -> bytes:
        """The same answer as a stream of server-sent events."""
        whole = _response(said, request, name, model, created)
        (item,) = whole["output"]
        (part,) = item["content"]
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        item_begun = {**item, "status": "in_progress", "content": []}
        events: list[tuple[str, dict[str, Any]]] = [
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
            ("response.output_item.added", {"output_index": 0, "item": item_begun}),
            ("response.content_part.added", {**at, "part": {**part, "text": ""}}),
            ("response.output_text.delta", {**at, "delta": part["text"], "logprobs": []}),
            ("response.output_text.done", {**at, "text": part["text"], "logprobs": []}),
            ("response.content_part.done", {**at, "part": part}),
            ("response.output_item.done", {"output_index": 0, "item": item}),
            ("response.completed", {"response": whole}),
        ]
        return b"".join(
            _sent({"type": kind, "sequence_number": number, **about})
            for number, (kind, about) in enumerate(events)
        )

    def broken(self, message: str, code: str) -> bytes:
        """What a client reads in a stream that ends badly."""
        about = {"code": code, "message": message, "param": None}
        return _sent({"type": "error", "sequence_number": 0, **about})


class ResponseReader:
    """Listens to a teacher's stream of events that is passed on; its last event has it all."""

    def __init__(self) -> None:
        self.ended = False
        self._tail = b""
        self._pieces: list[str] = []
        self._last: dict[str, Any] | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            event = read_object(line[5:].strip()) if line.startswith(b"data:") else None
            if event is None:
                continue
            if event.get("type") == "response.output_text.delta":
                self._pieces.append(text_of(event.get("delta")) or "")
            if event.get("type") in ENDS and isinstance(event.get("response"), dict):
                self.ended, self._last = True, event["response"]

    def close(self) -> None:
        """A stream without its last event has no end: it says nothing for sure."""

    def completion(self) -> Completion:
        """What was said. Without an end there is no answer."""
        self.feed(b"\n")  # the last line may lack it
        said = _completion(self._last) if self._last is not None else None
        if said is None:
            return Completion()
        if not said.content and self._pieces:  # some servers leave the output out at the end
            return msgspec.structs.replace(said, content="".join(self._pieces))
        return said


def _sent(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\n".encode() + b"data: " + encode(event) + b"\n\n"


RESPONSES = ResponsesDialect()

# Requests


def _names_state(wanted: Mapping[str, Any]) -> bool:
    """Whether something that is kept elsewhere is part of the prompt."""
    return any(wanted.get(name) for name in STATE)


def _as_chat(wanted: dict[str, Any], messages: list[WireMessage]) -> ResponsesRequest:
    text, reasoning = _object(wanted.get("text")), _object(wanted.get("reasoning"))
    include = wanted.get("include")
    asks_logprobs = isinstance(include, list) and "message.output_text.logprobs" in include
    tools = wanted.get("tools")
    return ResponsesRequest(
        model=wanted["model"],
        messages=messages,
        stream=wanted.get("stream"),
        user=wanted.get("user"),
        safety_identifier=wanted.get("safety_identifier"),
        max_completion_tokens=wanted.get("max_output_tokens"),
        response_format=_chat_format(text.get("format")),
        logprobs=wanted.get("top_logprobs") or asks_logprobs or None,
        tools=[_chat_tool(tool) for tool in tools] if isinstance(tools, list) else tools,
        tool_choice=wanted.get("tool_choice") if tools else None,
        reasoning_effort=reasoning.get("effort"),
        verbosity=text.get("verbosity"),
        temperature=wanted.get("temperature"),
        top_p=wanted.get("top_p"),
        stores=wanted.get("store") is not False,
        names_state=_names_state(wanted) or _refers(wanted.get("input")),
        echoed={name: wanted[name] for name in ECHOED if wanted.get(name) is not None},
    )


def _object(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _chat_format(wanted: object) -> object:
    """`text.format` as `response_format` says it."""
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return wanted
    described = {name: said for name, said in wanted.items() if name != "type"}
    return {"type": "json_schema", "json_schema": described}


def _chat_tool(tool: object) -> object:
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    function = {name: said for name, said in tool.items() if name != "type"}
    return {"type": "function", "function": function}


def _refers(given: object) -> bool:
    items = given if isinstance(given, list) else []
    return any(isinstance(item, dict) and item.get("type") == "item_reference" for item in items)


def _messages(wanted: Mapping[str, Any]) -> list[WireMessage] | None:
    """The instructions and the input as messages; None: it cannot be read."""
    told = wanted.get("instructions")
    first = [WireMessage("system", told)] if isinstance(told, str) and told else []
    given = wanted.get("input")
    if isinstance(given, str):
        return [*first, WireMessage("user", given)]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        return [*first, WireMessage("user", "")] if given is None and _names_state(wanted) else None
    return [*first, *(message for item in given for message in _of_item(item))]


def _of_item(item: dict[str, Any]) -> Iterator[WireMessage]:
    match item.get("type", "message"):
        case "message":
            yield WireMessage(str(item.get("role", "user")), item.get("content"))
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            yield WireMessage("assistant", None, [call])
        case "function_call_output":
            yield WireMessage("tool", item.get("output"), None, item.get("call_id"))
        case kind if kind in NO_TEXT:
            return
        case _:
            yield WireMessage("user", [item])


# Answers


def _response(
    said: Completion, request: ChatRequest | None, name: str, model: str, created: int
) -> dict[str, Any]:
    echoed = request.echoed if isinstance(request, ResponsesRequest) else {}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": said.content or ""}
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": created,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [
            {"type": "message", "id": f"msg_{name}", "status": "completed", "role": "assistant",
             "content": [part]}
        ],
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "usage": _usage(said.usage or Usage()),
        **ECHOED,
        **echoed,
    }  # fmt: skip


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _completion(found: dict[str, Any]) -> Completion | None:
    output = found.get("output")
    if not isinstance(output, list):
        return None
    items = [item for item in output if isinstance(item, dict)]
    parts = [item.get("content") for item in items if item.get("type") == "message"]
    texts = [text for part in parts if (text := text_of(part)) is not None]
    used = _object(found.get("usage"))
    named = [found.get("id"), found.get("model")]
    said_id, model = (one if isinstance(one, str) and one else None for one in named)
    return Completion(
        content="".join(texts) if texts else None,
        finish_reason=_reason(found, items),
        id=said_id,
        model=model,
        usage=usage_of(
            {
                "prompt_tokens": used.get("input_tokens"),
                "completion_tokens": used.get("output_tokens"),
            }
        ),
    )


def _reason(found: Mapping[str, Any], items: list[dict[str, Any]]) -> str:
    """In the chat protocol's words."""
    if found.get("status") == "incomplete":
        why = _object(found.get("incomplete_details")).get("reason")
        return "content_filter" if why == "content_filter" else "length"
    if found.get("status") in ("failed", "cancelled", "queued", "in_progress"):
        return "error"
    if any(str(item.get("type", "")).endswith("_call") for item in items):
        return "tool_calls"
    return "stop"
