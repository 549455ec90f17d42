"""Which of a student's answers a request's response format allows.

Decided by validating the answers that the student would give against the request's own JSON
Schema, not by a list of known keywords. What cannot be decided within bounds allows none, and the
teacher answers.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NoReturn

import jsonschema_rs
import msgspec

from pipelines.label import write_answer
from pipelines.types import Task

MOST_BYTES = 65_536
MOST_DEPTH = 64
MOST_NODES = 20_000  # with every reference replaced by what it refers to
MOST_REMEMBERED = 512  # schemas; of each only which labels it allows
NONE: frozenset[str] = frozenset()


class Formats:
    """Remembers what the schemas of late allow: an app sends the same few again and again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, Task], frozenset[str]] = OrderedDict()

    def allowed(self, wanted: Any, task: Task) -> frozenset[str]:
        """The labels whose answer has the format; empty: the teacher has to answer."""
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        if wanted is None or kind == "text":
            return frozenset(task.labels)
        if task.answer_pointer is None:
            return NONE
        if kind == "json_object":
            return frozenset(task.labels)
        described = wanted.get("json_schema") if kind == "json_schema" else None
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            return NONE
        return self._remembered(schema, task)

    def _remembered(self, schema: dict[str, Any], task: Task) -> frozenset[str]:
        try:
            written = msgspec.json.encode(schema)
        except RecursionError:
            return NONE
        if len(written) > MOST_BYTES:
            return NONE
        key = (blake2b(written, digest_size=16).digest(), task)
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        found = self._known[key] = _allowed(schema, task)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return found


def _allowed(schema: dict[str, Any], task: Task) -> frozenset[str]:
    try:
        bounded = _Bounds(schema)
        bounded.count(schema, depth=0, within=())
        validator = jsonschema_rs.validator_for(_with_null(schema), retriever=_refuse)
        return frozenset(
            label
            for label in task.labels
            if validator.is_valid(json.loads(write_answer(label, task)))
        )
    # The library is not ours, and what it is given comes from outside.
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
        return NONE


def _refuse(uri: str) -> NoReturn:
    """A schema may refer to itself only; the library would fetch http and file addresses."""
    raise ValueError("a reference out of the schema")


class _Bounds:
    """Counts a schema's nodes as a validator may walk them. Raises ValueError above the bounds."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._counts: dict[str, int] = {}

    def count(self, node: Any, *, depth: int, within: tuple[str, ...]) -> int:
        """`within`: the references that led here; one that leads back to itself is refused."""
        if depth > MOST_DEPTH:
            raise ValueError("the schema is too deep")
        total = 1
        for name, child in _children(node):
            if name == "$ref":
                total += self._referred(child, depth, within)
            elif name in ("$dynamicRef", "$recursiveRef", "$id", "id") and isinstance(child, str):
                raise ValueError("references that are not plain ones")
            elif isinstance(child, dict | list) and not (node is self._root and name == "$defs"):
                total += self.count(child, depth=depth + 1, within=within)
            if total > MOST_NODES:
                raise ValueError("the schema is too large")
        return total

    def _referred(self, pointer: Any, depth: int, within: tuple[str, ...]) -> int:
        if not isinstance(pointer, str) or not pointer.startswith("#/") or pointer in within:
            raise ValueError("a reference out of the schema, or around in it")
        if pointer not in self._counts:
            target: Any = self._root
            for part in pointer[2:].split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                target = target[int(name)] if isinstance(target, list) else target[name]
            self._counts[pointer] = self.count(target, depth=depth + 1, within=(*within, pointer))
        return self._counts[pointer]


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, list):
        yield from (("", child) for child in node)


def _with_null(node: Any) -> Any:
    """`nullable: true`, OpenAPI's word, as JSON Schema says it: a type with null."""
    if isinstance(node, list):
        return [_with_null(child) for child in node]
    if not isinstance(node, dict):
        return node
    plain = {
        name: _with_null(child)
        for name, child in node.items()
        if not (name == "nullable" and isinstance(child, bool))  # a field may have that name
    }
    if node.get("nullable") is True and isinstance(plain.get("type"), str):
        plain["type"] = [plain["type"], "null"]
    return plain
