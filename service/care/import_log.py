"""Puts recorded logs onto the topic: the shapes of `service.care.logs`, and own columns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipelines.decode import decode
from pipelines.errors import BrokerUnavailable, InvalidMessage, SettingsError
from pipelines.label import read_label
from pipelines.records.common import DecodePolicy
from pipelines.records.signature import sign
from pipelines.types import Headers, PromptEvent, SourceOffset, Task
from service.care.logs.call import EVERY, LoggedCall, Progress
from service.care.logs.reading import Found, read_logs
from service.care.logs.records import Identities, Naming, record_of
from service.topics import TopicWriter

FLUSH_SECONDS = 60.0
REJECTS_KEPT = 100


class Reject(NamedTuple):
    """A line that was not sent, and why."""

    line: int
    reason: str  # with the name of the file, where there are several


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPolicy:
    """What to make of the lines. With a key all are signed: the importer vouches for them."""

    columns: Mapping[str, str] = field(default_factory=dict)  # field -> column, of --map
    model: str | None = None  # for lines that name none
    task: str | None = None
    teacher_model: str | None = None  # who gave the labels
    teacher_answers: bool = False  # the answers are the teacher's, not only the app's
    tasks: Mapping[str, Task] = field(default_factory=dict)
    producer: str | None = None
    key: bytes | None = field(default=None, repr=False)
    user_salt: bytes = field(default=b"not kept", repr=False)
    max_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        if (self.producer is None) != (self.key is None):
            raise SettingsError(
                "To sign what is imported, both the producer and its key are needed."
            )
        if self.task is not None and self.task not in self.tasks:
            names = ", ".join(sorted(self.tasks)) or "none"
            raise SettingsError(f"There is no task {self.task}; there are: {names}")

    @property
    def naming(self) -> Naming:
        return Naming(
            model=self.model,
            task=self.task,
            teacher_model=self.teacher_model,
            signed=self.key is not None,
            teacher_answers=self.teacher_answers,
        )

    @property
    def decoding(self) -> DecodePolicy:
        """As ingest will read it."""
        return DecodePolicy(
            claims={model: task.name for task in self.tasks.values() for model in task.models},
            tasks=frozenset(self.tasks),
            producer_keys={self.producer: self.key} if self.producer and self.key else {},
            user_salt=self.user_salt,
            max_bytes=self.max_bytes,
        )


@dataclass(slots=True, kw_only=True)
class ImportCounts:
    """What became of the files. Only the first rejects are kept."""

    lines: int = 0  # records: a line may hold several
    sent: int = 0
    answered: int = 0  # of these, with what the app received, and no more
    labelled: int = 0  # with what a teacher answered, signed
    unanswered: int = 0
    not_labels: int = 0  # of those of a teacher: answers that are none of the task's labels
    undated: int = 0
    other: int = 0  # what is no model call: not counted among the lines
    rejected: int = 0
    shapes: dict[str, int] = field(default_factory=dict)
    past: dict[str, int] = field(default_factory=dict)  # why no student may answer
    unclaimed: dict[str, int] = field(default_factory=dict)  # of models that no task claims
    rejects: list[Reject] = field(default_factory=list)


class Understood(NamedTuple):
    """A call as ingest will know it, and the record that says so."""

    event: PromptEvent
    value: bytes
    headers: Headers


def import_logs(
    paths: Sequence[Path],
    writer: TopicWriter,
    *,
    policy: ImportPolicy | None = None,
    progress: Progress = lambda _: None,
) -> ImportCounts:
    """Send every call that ingest would accept; return when they are durable.

    Safe to repeat: the same calls have the same ids, and count once (`logs.records.Identities`).
    """
    policy = policy or ImportPolicy()
    understand = understanding(policy)
    counts = ImportCounts()
    for found in read_logs(paths, policy.columns, progress):
        if found.call is None:
            counts.other += 1
            continue
        counts.lines += 1
        try:
            understood = understand(found)
            _send(writer, understood)
            _count(counts, found, understood, policy)
        except InvalidMessage as refusal:
            counts.rejected += 1
            if counts.rejected <= REJECTS_KEPT:
                file = f"{found.path.name}: " if len(paths) > 1 else ""
                counts.rejects.append(Reject(found.line, f"{file}{refusal}"))
        if counts.lines % EVERY == 0:
            progress(counts.lines)
    writer.flush(FLUSH_SECONDS)
    progress(counts.lines)
    return counts


def understanding(policy: ImportPolicy) -> Callable[[Found], Understood]:
    """What a found call says to ingest. Raises `InvalidMessage`."""
    naming, decoding, identities = policy.naming, policy.decoding, Identities()

    def understand(found: Found) -> Understood:
        if found.call is None:
            raise InvalidMessage("it is no model call")
        if isinstance(found.call, InvalidMessage):
            raise found.call
        value = record_of(found.call, naming, identities)
        headers: Headers = ()
        if policy.producer and policy.key:
            headers = sign(value, policy.producer, policy.key)
        at, now = SourceOffset("import", 0, found.line), int(time.time() * 1000)
        return Understood(decode(value, headers, at, now, decoding), value, headers)

    return understand


def _count(
    counts: ImportCounts, found: Found, understood: Understood, policy: ImportPolicy
) -> None:
    event = understood.event
    counts.sent += 1
    counts.shapes[found.shape] = counts.shapes.get(found.shape, 0) + 1
    if event.teacher_answer is not None:
        counts.labelled += 1
    elif event.answer is not None:
        counts.answered += 1
    else:
        counts.unanswered += 1
    task = policy.tasks.get(event.task or "")
    if task and event.teacher_answer and read_label(event.teacher_answer, task) is None:
        counts.not_labels += 1
    counts.undated += isinstance(found.call, LoggedCall) and not _is_dated(found.call)
    if event.past:
        counts.past[event.past] = counts.past.get(event.past, 0) + 1
    if event.task is None:
        counts.unclaimed[event.model] = counts.unclaimed.get(event.model, 0) + 1


def _is_dated(call: LoggedCall) -> bool:
    return call.time is not None or bool((call.native or {}).get("occurred_at"))


def _send(writer: TopicWriter, understood: Understood) -> None:
    try:
        writer.send(understood.value, headers=understood.headers)
    except BrokerUnavailable:  # the queue is full: let it empty, once
        writer.flush(FLUSH_SECONDS)
        writer.send(understood.value, headers=understood.headers)
