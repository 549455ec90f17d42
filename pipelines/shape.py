"""What an answer looks like, in words that quote nothing of it."""

import json
import re

from pipelines.typography import unwrapped, without_reasoning

MOST_NAMES = 5
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,29}")


def shape_in_words(answer: str | None) -> str:
    """As "reasoning, then 212 characters of text in 3 lines". Of an object its fields' names."""
    if not (answer or "").strip():
        return "empty"
    assert answer is not None
    said = unwrapped(answer)
    thought = "reasoning, then " if without_reasoning(answer).strip() != answer.strip() else ""
    return thought + (_shape(said) if said else "nothing")


def _shape(text: str) -> str:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        lines = text.count("\n") + 1
        size = f"{len(text):,} character{'s' if len(text) > 1 else ''} of text"
        return size + (f" in {lines:,} lines" if lines > 1 else "")
    if isinstance(value, dict):
        names = [name if _NAME.fullmatch(name) else "…" for name in list(value)[:MOST_NAMES]]
        more = f" and {len(value) - MOST_NAMES:,} more" if len(value) > MOST_NAMES else ""
        return f"a JSON object with the fields {', '.join(names)}{more}" if value else "{}"
    if isinstance(value, list):
        return f"a JSON list of {len(value):,}"
    if isinstance(value, str):
        return f"a JSON string of {len(value):,} characters"
    return "null" if value is None else "a JSON number or truth value"
