"""What datasets and the ledger still know of events that were chosen once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.ask import TeacherPolicy, asked_in
from pipelines.identities import question_key
from pipelines.render import app_messages
from pipelines.rows import read_held_out, read_training
from pipelines.types import Message, Side, Task
from service.care.rebuild.versions import written_at
from storage.artifacts import Artifact
from storage.datasets import CHAT_FILE
from storage.ledger import Call, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An event that the topic may have no more. `at`: since when it is known, about."""

    event_id: str
    messages: tuple[Message, ...]
    at: datetime
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownItem(Known):
    """An event as a dataset holds it."""

    task: str
    text: str
    label: str
    group_id: str
    side: Side
    weight: float = 1.0
    segment: str = ""
    held_out_pi: float | None = None
    terms: str = ""


class Asked(NamedTuple):
    """What a stored request tells of the event that it was made for."""

    task: Task
    messages: tuple[Message, ...]
    asked: Mapping[str, Any]


def known_items(datasets: Sequence[Artifact]) -> dict[str, KnownItem]:
    """By event id; a later dataset's word counts, as its labels may be corrected ones."""
    found: dict[str, KnownItem] = {}
    for dataset in datasets:
        about: dict[str, Any] = {
            "task": str(dataset.about["task"]),
            "terms": str(dataset.about.get("terms", "")),
            "at": written_at(dataset),
        }
        for item in _items(dataset, about):
            before = found.get(item.event_id)
            # Since when it was known: that is when its label was there.
            found[item.event_id] = replace(item, at=before.at) if before else item
    return found


def founders(items: Mapping[str, KnownItem], task: str) -> list[KnownItem]:
    """For each near-duplicate group its first member, or the oldest one that is left."""
    first: dict[str, KnownItem] = {}
    for item in items.values():
        if item.task == task and (item.group_id not in first or item.event_id == item.group_id):
            first[item.group_id] = item
    return list(first.values())


def calls_by_event(ledger: Ledger) -> dict[str, Call]:
    """The call that was made for each event: the latest, where a task was described anew."""
    return {call.event_id: call for call in ledger.calls() if not call.repeat}


def asked_in_call(
    ledger: Ledger, call: Call, tasks: Sequence[Task], policy: TeacherPolicy
) -> Asked | None:
    """What the app had asked; None where no task's question has the call's key."""
    body = ledger.request(call.key)
    if body is None:
        return None
    parameters = json.loads(body)
    for task in tasks:
        if question_key(task, parameters, call.repeat) == call.key:
            messages = app_messages(parameters["messages"], task)
            return Asked(task, messages, asked_in(parameters, policy))
    return None


def _items(dataset: Artifact, about: Mapping[str, Any]) -> Iterator[KnownItem]:
    chats = _lines(dataset.file(CHAT_FILE))
    for row, chat in zip(read_training(dataset.path), chats, strict=True):
        yield KnownItem(
            event_id=row.event_id,
            text=row.text,
            label=row.label,
            group_id=row.group_id,
            weight=row.weight,
            side=Side.TRAINING,
            messages=tuple(Message(m["role"], m["content"]) for m in chat["messages"][:-1]),
            **about,
        )
    for item in read_held_out(dataset.path):
        yield KnownItem(
            event_id=item.event_id,
            text=item.text,
            label=item.label,
            group_id=item.group_id,
            segment=item.segment,
            held_out_pi=item.inclusion_probability,
            side=Side.HELD_OUT,
            messages=(Message("user", item.text),),
            **about,
        )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    # Only a line feed ends a line: texts may hold other breaks.
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
