"""Puts a recorded log onto the topic: JSONL, CSV or Parquet, native, OpenAI pairs or columns."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec

from pipelines.decode import MAX_REASON_CHARACTERS, decode
from pipelines.errors import BrokerUnavailable, InvalidMessage, SettingsError
from pipelines.records.common import DecodePolicy
from pipelines.records.mending import plain_messages
from pipelines.records.native import SCHEMA, NativeRecord, encode_native
from pipelines.records.signature import sign
from pipelines.replies import read_reply
from pipelines.types import Headers, Message, SourceOffset
from service.topics import TopicWriter

FLUSH_SECONDS = 60.0
PROGRESS_EVERY = 1_000
REJECTS_KEPT = 100
LONGEST_LINE = 16 << 20
MILLISECONDS_FROM = 1e11  # as seconds that would be the year 5138
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

DESCRIBE_PARQUET = "DESCRIBE SELECT * FROM read_parquet($path)"
SELECT_PARQUET = "SELECT {columns} FROM read_parquet($path)"


class Reject(NamedTuple):
    """A line that was not sent, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column, or key of a JSON line, holds what. Those that are not there are left out."""

    text: str = "text"  # the prompt itself, or:
    messages: str = "messages"  # a list of {role, content}, in CSV as JSON
    model: str = "model"
    answer: str = "answer"  # what the app received
    label: str = "label"  # what a teacher answered: needs a key to sign with
    user: str = "user"
    time: str = "time"  # RFC 3339, or seconds or milliseconds since 1970
    event_id: str = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPolicy:
    """What to make of the lines. With a key all are signed: the importer vouches for them."""

    columns: Columns = field(default_factory=Columns)
    model: str | None = None  # for lines that name none
    task: str | None = None
    teacher_model: str | None = None  # who gave the labels
    claims: Mapping[str, str] = field(default_factory=dict)  # model name -> task name
    producer: str | None = None
    key: bytes | None = field(default=None, repr=False)
    max_bytes: int = 256 * 1024


@dataclass(slots=True, kw_only=True)
class ImportCounts:
    """What became of a file. Only the first rejects are kept."""

    lines: int = 0
    sent: int = 0
    answered: int = 0  # of these, with what the app received
    labelled: int = 0  # with what a teacher answered, signed
    rejected: int = 0
    unclaimed: dict[str, int] = field(default_factory=dict)  # lines of models that no task claims
    rejects: list[Reject] = field(default_factory=list)


class _Line(NamedTuple):
    number: int
    raw: bytes | None  # as it stands in a JSONL file
    row: Mapping[str, Any] | None  # as a table has it
    problem: str | None = None


def import_file(
    path: Path,
    writer: TopicWriter,
    *,
    policy: ImportPolicy | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> ImportCounts:
    """Send every line that ingest would accept; return when they are durable.

    Safe to repeat: a line's event id comes from its content and number.
    """
    policy = policy or ImportPolicy()
    if (policy.producer is None) != (policy.key is None):
        raise SettingsError("To sign what is imported, both the producer and its key are needed.")
    lines = _reader(path)
    check = _as_ingest_will(policy)
    counts = ImportCounts()
    for line in lines:
        counts.lines += 1
        try:
            value = _value(line, policy)
            headers = _signature(value, policy)
            at = SourceOffset("import", 0, line.number)
            event = decode(value, headers, at, int(time.time() * 1000), check)
            _send(writer, value, headers)
            counts.sent += 1
            counts.answered += event.answer is not None
            counts.labelled += event.teacher_answer is not None
            if event.task is None:
                counts.unclaimed[event.model] = counts.unclaimed.get(event.model, 0) + 1
        except InvalidMessage as refusal:
            counts.rejected += 1
            if counts.rejected <= REJECTS_KEPT:
                counts.rejects.append(Reject(line.number, str(refusal)))
        if counts.lines % PROGRESS_EVERY == 0:
            progress(counts.lines)
    writer.flush(FLUSH_SECONDS)
    progress(counts.lines)
    return counts


def _as_ingest_will(policy: ImportPolicy) -> DecodePolicy:
    keys = {policy.producer: policy.key} if policy.producer and policy.key else {}
    return DecodePolicy(
        claims=policy.claims,
        tasks=frozenset(policy.claims.values()),
        producer_keys=keys,
        user_salt=b"not kept",
        max_bytes=policy.max_bytes,
    )


def _signature(value: bytes, policy: ImportPolicy) -> Headers:
    if not policy.producer or not policy.key:
        return ()
    return sign(value, policy.producer, policy.key)


def _send(writer: TopicWriter, value: bytes, headers: Headers) -> None:
    try:
        writer.send(value, headers=headers)
    except BrokerUnavailable:  # the queue is full: let it empty, once
        writer.flush(FLUSH_SECONDS)
        writer.send(value, headers=headers)


# One line to one record


def _value(line: _Line, policy: ImportPolicy) -> bytes:
    if line.problem is not None:
        raise InvalidMessage(line.problem)
    row = line.row
    if line.raw is not None:
        row = _parse(line.raw)
        if "request" in row and "schema" not in row:
            return line.raw
    assert row is not None
    try:
        if line.raw is not None and "schema" in row:
            record = msgspec.convert(row, NativeRecord)
        else:
            record = _from_columns(row, policy)
        if record.event_id is None:
            record = msgspec.structs.replace(record, event_id=_event_id(line.number, record))
        return encode_native(record)
    except msgspec.DecodeError as problem:
        raise InvalidMessage(str(problem)[:MAX_REASON_CHARACTERS]) from None
    except UnicodeEncodeError:
        raise InvalidMessage("not UTF-8") from None


def _parse(raw: bytes) -> Mapping[str, Any]:
    try:
        row = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidMessage("not a line of JSON") from None
    if not isinstance(row, dict):
        raise InvalidMessage("not a JSON object")
    return row


def _event_id(number: int, record: NativeRecord) -> str:
    digest = blake2b(b"%d " % number + encode_native(record), digest_size=12)
    return f"import-{digest.hexdigest()}"


def _from_columns(row: Mapping[str, Any], policy: ImportPolicy) -> NativeRecord:
    columns = policy.columns
    label = _text(row, columns.label)
    if label is not None and policy.key is None:
        raise InvalidMessage("it has a label, and labels count only when they are signed")
    model = _text(row, columns.model) or policy.model
    if model is None:
        raise InvalidMessage(f"no {columns.model}, and none was named for the whole file")
    messages, answer = _messages(row, columns), _text(row, columns.answer)
    if answer is None and isinstance(row.get("choices"), list):  # a stored completion
        said = read_reply(msgspec.json.encode(row))
        answer = said.content if said else None
    if len(messages) > 1 and messages[-1].role == "assistant":
        # As files for fine-tuning have it. What is asked must not hold what was answered.
        answer, messages = answer or messages[-1].content, messages[:-1]
    return NativeRecord(
        schema=SCHEMA,
        event_id=_text(row, columns.event_id),
        task=policy.task,
        model=model,
        occurred_at=_moment(row.get(columns.time)),
        messages=messages,
        answer=answer,
        teacher_answer=label,
        teacher_model=None if label is None else policy.teacher_model,
        user=_text(row, columns.user),
    )


def _text(row: Mapping[str, Any], column: str) -> str | None:
    """Numbers become text, because tables keep ids and labels as numbers. Empty is absent."""
    found = row.get(column)
    if found is None or found == "":
        return None
    if isinstance(found, (str, int)) and not isinstance(found, bool):
        return str(found)
    raise InvalidMessage(f"{column} is not a text")


def _messages(row: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    given = row.get(columns.messages)
    if given in (None, ""):
        text = _text(row, columns.text)
        if text is None:
            raise InvalidMessage(f"neither {columns.text} nor {columns.messages}")
        return (Message("user", text),)
    if isinstance(given, str):
        given = msgspec.json.decode(given.encode())
    read, beyond = plain_messages(given)
    if beyond:
        raise InvalidMessage("it holds an image, a sound or a file")
    return msgspec.convert(read, tuple[Message, ...])


def _moment(given: Any) -> datetime | None:
    if given in (None, ""):
        return None
    if isinstance(given, datetime):
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given
    with suppress(ValueError, TypeError):
        seconds = float(given)  # tables keep numbers as text, too
        return _from_unix(seconds / 1000 if seconds > MILLISECONDS_FROM else seconds)
    with suppress(ValueError, TypeError):
        moment = datetime.fromisoformat(given)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    raise InvalidMessage("its time is not one")


def _from_unix(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidMessage("its time is not one") from None


# Files to lines


def _reader(path: Path) -> Iterator[_Line]:
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".csv": _csv_lines,
        ".parquet": _parquet_lines,
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise SettingsError(f"{path.name}: only {', '.join(readers)} can be imported.")
    if not path.is_file():
        raise SettingsError(f"There is no file {path}.")
    return read(path)


def _json_lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            line = line.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
            if line:
                yield _Line(number, line, None)


def _csv_lines(path: Path) -> Iterator[_Line]:
    csv.field_size_limit(LONGEST_LINE)
    # Bytes that are not UTF-8 are carried along, so that only their own line is refused.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.DictReader(file)
        while True:
            try:
                row = next(table)
            except StopIteration:
                return
            except csv.Error as problem:
                yield _Line(table.line_num, None, None, f"not a line of CSV: {problem}")
                continue
            yield _Line(table.line_num, None, row)


def _parquet_lines(path: Path) -> Iterator[_Line]:
    with duckdb.connect(":memory:") as connection:
        try:
            described = connection.execute(DESCRIBE_PARQUET, {"path": str(path)}).fetchall()
            names = [str(name) for name, *_ in described]
            select = ", ".join(_selected(name, kind) for name, kind, *_ in described)
            connection.execute(SELECT_PARQUET.format(columns=select), {"path": str(path)})
        except duckdb.Error as problem:
            raise SettingsError(f"{path} is not a Parquet file: {problem}") from problem
        number = 0
        while rows := connection.fetchmany(PROGRESS_EVERY):
            for row in rows:
                number += 1
                yield _Line(number, None, dict(zip(names, row, strict=True)))


def _selected(name: str, kind: str) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    # DuckDB's Python client needs pytz to hand these out.
    return f"epoch_us({quoted}) / 1e6" if kind == "TIMESTAMP WITH TIME ZONE" else quoted
