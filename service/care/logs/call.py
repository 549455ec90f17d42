"""One model call as a log tells of it, whatever the log's shape, and the table's types."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from pipelines.errors import InvalidMessage

Row = Mapping[str, Any]
Progress = Callable[[int], None]  # is told how many records were read
EVERY = 1_000


class Said(NamedTuple):
    """What was answered. A cut or filtered answer is what the app got, and never a label."""

    text: str
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """Side fields are as the log has them: what is odd about one costs only that one."""

    messages: list[dict[str, Any]]  # as in the chat protocol, oldest first
    model: object = None  # the name that the app used
    said: Said | None = None
    label: str | None = None  # what the log itself calls a teacher's answer
    user: object = None
    time: datetime | None = None
    source_id: object = None
    metadata: object = None
    request: Row = field(default_factory=dict)  # what else was asked for: tools, how many answers
    native: Row | None = None  # a record that is already in our own form


# Of one row: its calls, and why a part of it cannot be used. Nothing: it is no model call.
Read = Callable[[Row], Iterable[LoggedCall | InvalidMessage]]


class Shape(NamedTuple):
    """A shape of rows: how it is told from the others, and how it is read."""

    name: str  # as the operator is told
    fits: Callable[[Row], bool]
    read: Read
    prompt: str = ""  # where its rows have the prompt, if that is one place
