"""Labels as they appear in answers: how one is read, and how a student writes it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from pipelines.types import Task
from pipelines.typography import NAMES, folded, joined, readings, unwrapped

OUTSIDE = "the answer is outside the label set"  # why an answer is no label
_NAMES = frozenset(folded(name) for name in NAMES.split("|"))
MOST_WRAPPED = 3  # JSON in JSON, a list in a list


def read_label(answer: str | None, task: Task) -> str | None:
    """The label that an answer gives, or None when it gives none of the task's.

    Reasoning before it and typography around it are forgiven (`pipelines.typography`), mentions
    are not: what is left has to be a label, the whole of it.
    """
    if answer is None:
        return None
    if task.answer_pointer is not None:
        value = _parsed(answer)
        if value is None:
            value = _parsed(unwrapped(answer))
        return _match(_values(_at(value, task.answer_pointer)), task.labels)
    if answer in task.labels:  # nearly always
        return answer
    text = unwrapped(answer)
    return _match([text, *_values(_only_field(_parsed(text)))], task.labels)


def write_answer(label: str, task: Task) -> str:
    """The student's answer, in the form that the teacher's answers have."""
    if task.answer_pointer is None:
        return label
    value: Any = label
    for part in reversed(_parts(task.answer_pointer)):
        value = [value] if part == "0" else {part: value}
    return json.dumps(value, ensure_ascii=False)


def _match(texts: Iterable[str], labels: tuple[str, ...]) -> str | None:
    """The label that one of these texts is, the most literal reading of each first."""
    names = _names(labels)
    for text in texts:
        for reading in readings(text):
            for form, known in names:
                if label := known.get(form(reading)):
                    return label
    return None


@lru_cache(maxsize=64)
def _names(labels: tuple[str, ...]) -> tuple[tuple[Callable[[str], str], Mapping[str, str]], ...]:
    """Ways to compare, the strictest first. What two labels share in one is a name of neither."""
    return tuple((form, _by_form(labels, form)) for form in (str, folded, joined))


def _by_form(labels: tuple[str, ...], form: Callable[[str], str]) -> dict[str, str]:
    forms = Counter(map(form, labels))
    return {form(label): label for label in labels if forms[form(label)] == 1}


def _parsed(text: str) -> object:
    """JSON, which may itself be in a JSON string; None where it is none."""
    value: object = text
    for _ in range(MOST_WRAPPED):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None if value is text else value
    return value


def _at(value: object, pointer: str) -> object:
    """RFC 6901; a list of one around all of it is forgiven."""
    for _ in range(MOST_WRAPPED):
        try:
            found: Any = value
            for part in _parts(pointer):
                found = found[_index(part)] if isinstance(found, list) else found[part]
        except (ValueError, KeyError, IndexError, TypeError):
            if not (isinstance(value, list) and len(value) == 1):
                return None
            (value,) = value
        else:
            return found
    return None


def _only_field(value: object) -> object:
    """The one field of an object, where it is called what an answer may be called."""
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict) and len(value) == 1:
        ((name, value),) = value.items()
        return value if folded(name) in _NAMES else None
    return value


def _values(value: object) -> Iterator[str]:
    """A JSON value as the text of a label; of a list its only item."""
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool | int):
        yield json.dumps(value)
    elif isinstance(value, float):
        yield repr(value)
        if value.is_integer():
            yield str(int(value))


def _index(part: str) -> int:
    if not (part.isascii() and part.isdigit()):  # "-1" would be the last one
        raise ValueError(f"{part} is no place in a list")
    return int(part)


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
