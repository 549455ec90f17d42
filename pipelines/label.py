"""Labels as they appear in answers: how one is read, and how a student writes it."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelines.types import Task

OUTSIDE = "the answer is outside the label set"  # why an answer is no label


def read_label(answer: str | None, task: Task) -> str | None:
    """The label that an answer gives, or None when it gives none of the task's.

    Case and surrounding space, quotes or a full stop are forgiven, nothing else: an answer
    that only mentions a label is no label.
    """
    if answer is None:
        return None
    if task.answer_pointer is not None:
        found = _follow(answer, task.answer_pointer)
        return _match(found, task.labels) if isinstance(found, str) else None
    return _match(answer, task.labels)


def write_answer(label: str, task: Task) -> str:
    """The student's answer, in the form that the teacher's answers have."""
    if task.answer_pointer is None:
        return label
    value: Any = label
    for part in reversed(_parts(task.answer_pointer)):
        value = [value] if part == "0" else {part: value}
    return json.dumps(value, ensure_ascii=False)


def _match(text: str, labels: tuple[str, ...]) -> str | None:
    known = _by_folded_name(labels)
    if exact := known.get(text):
        return exact
    plain = text.strip().casefold()
    # As it is first: a label may itself end in a full stop.
    return known.get(plain) or known.get(plain.strip("\"'`.").strip())


@lru_cache(maxsize=64)
def _by_folded_name(labels: tuple[str, ...]) -> Mapping[str, str]:
    return {label.casefold(): label for label in labels}


def _follow(answer: str, pointer: str) -> object:
    """RFC 6901, in the JSON of the answer; code fences around it are forgiven."""
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        value: Any = json.loads(text)
        for part in _parts(pointer):
            value = value[_index(part)] if isinstance(value, list) else value[part]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return value


def _index(part: str) -> int:
    if not (part.isascii() and part.isdigit()):  # "-1" would be the last one
        raise ValueError(f"{part} is no place in a list")
    return int(part)


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
