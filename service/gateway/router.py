"""Who answers a request: decisions only, nothing here waits or remembers."""

from typing import Literal

from pipelines.reach import Reach
from pipelines.sample import NO_THRESHOLD
from service.gateway.wire import ChatRequest

# Longer texts than this are cut before the tokenizer sees them, and the student is unsure:
# no encoder reads so far, and tokenizing a megabyte would hold up everybody else.
MAX_CHARACTERS = 16_384

Unsupported = Literal["tools", "content", "choices", "format", "logprobs", "audio", "malformed"]
Unsure = Literal["below_threshold", "no_threshold", "novel", "empty", "too_long"]


def unsupported(request: ChatRequest) -> Unsupported | None:
    """What the request asks for that no student can do; None: nothing."""
    if request.tools or request.functions or request.web_search_options is not None:
        return "tools"
    if request.tool_choice is not None or request.function_call is not None:
        return "tools"
    if any(message.tool_calls or message.function_call for message in request.messages):
        return "tools"
    if request.n not in (None, 1):
        return "choices"
    if request.logprobs:
        return "logprobs"
    if request.audio is not None or request.modalities not in (None, [], ["text"]):
        return "audio"
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
