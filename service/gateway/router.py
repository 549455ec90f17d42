"""Who answers a request: decisions only, nothing here waits or remembers."""

from typing import Literal

from pipelines.reach import Reach
from pipelines.sample import NO_THRESHOLD

# Longer texts than this are cut before the tokenizer sees them, and the student is unsure:
# no encoder reads so far, and tokenizing a megabyte would hold up everybody else.
MAX_CHARACTERS = 16_384

Unsure = Literal["below_threshold", "no_threshold", "novel", "empty", "too_long"]


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
