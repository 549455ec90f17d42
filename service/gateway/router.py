"""Who answers a request: decisions only, nothing here waits or remembers."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pipelines.label import write_answer
from pipelines.reach import Reach
from pipelines.sample import NO_THRESHOLD
from pipelines.types import Task
from service.gateway.wire import ChatRequest

# Longer texts than this are cut before the tokenizer sees them, and the student is unsure:
# no encoder reads so far, and tokenizing a megabyte would hold up everybody else.
MAX_CHARACTERS = 16_384

Unsupported = Literal["tools", "content", "choices", "format", "logprobs", "audio", "malformed"]
Unsure = Literal["below_threshold", "no_threshold", "novel", "empty", "too_long"]


def unsupported(request: ChatRequest, task: Task) -> Unsupported | None:
    """What the request asks for that no student can do; None: nothing."""
    if request.tools or request.functions or request.web_search_options is not None:
        return "tools"
    if request.tool_choice is not None or request.function_call is not None:
        return "tools"
    if any(message.tool_calls or message.function_call for message in request.messages):
        return "tools"
    if request.n is not None and request.n != 1:
        return "choices"
    if request.logprobs:
        return "logprobs"
    if request.audio is not None or any(kind != "text" for kind in request.modalities or ()):
        return "audio"
    if request.response_format is not None and not _fits(request.response_format, task):
        return "format"
    return None


def why_unsure(
    text: str, confidence: float, reach: Reach | None, threshold: float | None
) -> Unsure | None:
    """Why the student's answer cannot be promised; None: it can."""
    if not text.strip():
        return "empty"
    if len(text) > MAX_CHARACTERS:
        return "too_long"
    if threshold is None:
        return NO_THRESHOLD
    if reach == "beyond":
        return "novel"
    # Written so that a NaN is unsure.
    return None if confidence >= threshold else "below_threshold"


def _fits(wanted: Any, task: Task) -> bool:
    """Whether the student's answers satisfy the response format that the app asks for."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return True
    if task.answer_pointer is None:
        return False
    if kind == "json_object":
        return True
    if kind != "json_schema":
        return False
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    return _accepts(schema, json.loads(write_answer(task.labels[0], task)), task.labels)


def _accepts(schema: Any, answer: Any, labels: Sequence[str]) -> bool:
    """Whether the schema takes the student's answer, whichever label is in it.

    Only plain schemas are understood; for any other the teacher is asked.
    """
    if not isinstance(schema, dict):
        return False
    if not isinstance(answer, dict):
        return _accepts_labels(schema, labels)
    known = {"type", "properties", "required", "additionalProperties", "title", "description"}
    properties, required = schema.get("properties"), schema.get("required", [])
    plain = schema.get("type") == "object" and set(schema) <= known
    if not plain or not isinstance(properties, dict) or not isinstance(required, list):
        return False
    return all(name in answer for name in required) and all(
        _accepts(properties.get(name), value, labels) for name, value in answer.items()
    )


def _accepts_labels(schema: dict[str, Any], labels: Sequence[str]) -> bool:
    if not set(schema) <= {"type", "enum", "title", "description"}:
        return False
    allowed = schema.get("enum")
    if allowed is None:
        return schema.get("type") == "string"
    return isinstance(allowed, list) and all(label in allowed for label in labels)
