"""What an answer looks like: for whoever has to parse it, and in words that quote nothing of it."""

import json
import re
from collections import Counter
from collections.abc import Mapping

from pipelines.typography import unwrapped, without_reasoning

MOST_NAMES = 5
MOST_FIELDS, MOST_DEPTH = 20, 4
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,29}")


TEXT = "text"
MOST_OF_ANOTHER = 0.05  # of the answers that an app receives today
FEWEST_OF_ANOTHER = 5  # a stray one says nothing


def shape(answer: str) -> str:
    """What an app has to be able to parse: text, or JSON with its keys and types.

    Reasoning and typography around it make no difference (`pipelines.typography`).
    """
    said = unwrapped(answer)
    if said[:1] not in ("{", "["):
        return TEXT
    try:
        return _json_shape(json.loads(said), 0)
    except (ValueError, RecursionError):
        return TEXT


def unlike(own: str, shapes: Mapping[str, int]) -> str:
    """Why an app would not understand answers of a shape as it does those of today, or nothing.

    `shapes`: how many of the newest answers that the app received had each shape.
    """
    total, others = sum(shapes.values()), Counter(shapes)
    alike = others.pop(own, 0)
    if total - alike < FEWEST_OF_ANOTHER or total - alike <= MOST_OF_ANOTHER * total:
        return ""
    ((other, count),) = others.most_common(1)
    return (
        f"The app receives {other} ({count:,} of the newest {total:,} answers); the student "
        f"would answer {own}, which an app that parses the other would not understand."
    )


def _json_shape(value: object, depth: int) -> str:
    match value:
        case dict() if depth < MOST_DEPTH:
            shown = sorted(value)[:MOST_FIELDS]
            inside = [f"{_name(name)}: {_json_shape(value[name], depth + 1)}" for name in shown]
            more = [f"and {len(value) - MOST_FIELDS} more"] if len(value) > MOST_FIELDS else []
            return "{" + ", ".join([*inside, *more]) + "}"
        case list() if depth < MOST_DEPTH:
            kinds = sorted({_json_shape(one, depth + 1) for one in value[:MOST_FIELDS]})
            return f"[{' or '.join(kinds)}]"
        case dict() | list():
            return "…"
        case bool():
            return "truth value"
        case int() | float():
            return "number"
        case None:
            return "null"
    return TEXT


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) else "…"


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
        names = list(map(_name, list(value)[:MOST_NAMES]))
        more = f" and {len(value) - MOST_NAMES:,} more" if len(value) > MOST_NAMES else ""
        return f"a JSON object with the fields {', '.join(names)}{more}" if value else "{}"
    if isinstance(value, list):
        return f"a JSON list of {len(value):,}"
    if isinstance(value, str):
        return f"a JSON string of {len(value):,} characters"
    return "null" if value is None else "a JSON number or truth value"
