"""A file to its rows, one at a time: JSON in lines, in an array or one after the other; tables.

What a file is, is read off its first bytes, not its name: gzip, UTF-8 or UTF-16 with or without
a byte-order mark, Parquet, the separator of a table.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import duckdb
import msgspec

from pipelines.errors import SettingsError
from pipelines.records.mending import storable
from service.care.logs.call import Row

LONGEST_LINE = 16 << 20
LONGEST_VALUE = 256 << 20  # of one JSON value that is not on a line of its own
CHUNK = 1 << 20
PEEKED = 64 << 10
BATCH = 1_000
# The longer ones first: the mark of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LONGEST_TOKEN = 16  # of JSON beside texts: a number, a word
BETWEEN = re.compile(r"[\s,\[\]]*")
SEPARATORS = ",;\t|"
DESCRIBE_PARQUET = "DESCRIBE SELECT * FROM read_parquet($path)"
SELECT_PARQUET = "SELECT {columns} FROM read_parquet($path)"


class Line(NamedTuple):
    """A row, or why there is none. The number counts lines; of arrays and Parquet, records."""

    number: int
    row: Row
    problem: str = ""


class LogFile(NamedTuple):
    """What is in a file. `columns`: of a table, which has the same in every row."""

    lines: Iterator[Line]
    columns: tuple[str, ...] | None = None


def open_log(path: Path) -> LogFile:
    """Raises `SettingsError` for what is no log, before the first line is given."""
    if not path.is_file():
        raise SettingsError(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return _parquet(path)
    if start[:2] == b"PK":
        raise SettingsError(f"{path.name} is an archive or a spreadsheet: save it as CSV or JSON.")
    try:
        return _text(path)
    except (OSError, EOFError, zlib.error, UnicodeError) as problem:
        raise SettingsError(f"{path.name} cannot be read: {problem}") from problem


def _text(path: Path) -> LogFile:
    with _open(path) as file:
        head = file.read(PEEKED)
    if "\0" in head:
        raise SettingsError(f"{path.name} is no text: unpack it, or save it as JSON or CSV.")
    in_lines = any(ending in path.name.lower() for ending in (".jsonl", ".ndjson"))
    first = head.lstrip()[:1]
    if first == "[" or (first == "{" and not in_lines and _goes_on(head)):
        return LogFile(_guarded(_values(path)))
    if first == "{" or in_lines:
        return LogFile(_guarded(_json_lines(path)))
    return _table(path, head)


def _goes_on(head: str) -> bool:
    """Whether the first line is but the beginning of its JSON value: indented, or very long."""
    line, end, _ = head.lstrip().partition("\n")
    return (not end and len(head) == PEEKED) or line.rstrip().endswith(("{", "[", ","))


def _open(path: Path, newline: str = "") -> IO[str]:
    """The file as text. Bytes that are no text are carried along: they spoil their line only."""
    with _bytes(path) as raw:
        start = raw.read(4)
    encoding = next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")
    if start[:2].count(0) == 1 and encoding == "utf-8":  # ASCII in two bytes, without a mark
        encoding = "utf-16-be" if start[0] == 0 else "utf-16-le"
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    return io.TextIOWrapper(_bytes(path), encoding=encoding, errors=errors, newline=newline)


def _bytes(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def _guarded(lines: Iterator[Line]) -> Iterator[Line]:
    """A file that ends in the middle gives what it holds up to there, and then says so."""
    number = 0
    try:
        for line in lines:
            number = line.number
            yield line
    except (EOFError, zlib.error, OSError) as problem:
        yield Line(number + 1, {}, f"the file cannot be read any further: {problem}")


# JSON


def _json_lines(path: Path) -> Iterator[Line]:
    with _open(path, newline="\n") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith("\n"):
                    pass
                yield Line(number, {}, f"longer than {LONGEST_LINE} characters")
            elif line := line.strip():
                yield _parsed(number, line)


def _parsed(number: int, line: str) -> Line:
    try:
        row = msgspec.json.decode(line)
    except UnicodeEncodeError:
        return Line(number, {}, "not UTF-8")
    except (msgspec.DecodeError, RecursionError):
        try:
            row = storable(json.loads(line))  # NaN, half an emoji
        except (ValueError, RecursionError):
            return Line(number, {}, "not a line of JSON")
    return Line(number, row) if isinstance(row, dict) else Line(number, {}, "not a JSON object")


def _values(path: Path) -> Iterator[Line]:
    """The objects of an array, or one after the other with whatever blanks between them."""
    decode, number, at, buffer, ended = json.JSONDecoder().raw_decode, 0, 0, "", False
    wanted = CHUNK
    with _open(path) as file:
        while True:
            at = cast(re.Match[str], BETWEEN.match(buffer, at)).end()
            problem = ""
            if at < len(buffer):
                try:
                    value, at = decode(buffer, at)
                except json.JSONDecodeError as error:
                    problem = _why_not(error, buffer, ended)
                except RecursionError:
                    problem = "nested too deeply; the rest was not read"
                else:
                    number, wanted = number + 1, CHUNK
                    yield _object(number, value)
                    continue
            elif ended:
                return
            if problem or len(buffer) - at > LONGEST_VALUE:
                yield Line(number + 1, {}, problem or "one value is too long to be read whole")
                return
            more = file.read(wanted)
            buffer, at, wanted, ended = buffer[at:] + more, 0, wanted * 2, not more


def _why_not(error: json.JSONDecodeError, buffer: str, ended: bool) -> str:
    """Empty: there may only be more to read."""
    cut = error.msg.startswith("Unterminated") or error.pos >= len(buffer) - LONGEST_TOKEN
    return "" if cut and not ended else "not JSON from here on; the rest was not read"


def _object(number: int, value: Any) -> Line:
    if not isinstance(value, dict):
        return Line(number, {}, "not a JSON object")
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        value = storable(value)
    return Line(number, value)


# Tables


def _table(path: Path, head: str) -> LogFile:
    """A table in a text, whose first line names its columns."""
    skipped = re.match(r"sep=(.)\r?\n", head)  # what spreadsheets write for each other
    named = head[skipped.end() :] if skipped else head
    separator = skipped[1] if skipped else max(SEPARATORS, key=lambda one: _width(named, one))
    columns = next(csv.reader(io.StringIO(named, newline=""), delimiter=separator), [])
    lines = _guarded(_table_lines(path, separator, skip=1 if skipped else 0))
    return LogFile(lines, tuple(name.strip() for name in columns))


def _width(head: str, separator: str) -> int:
    return len(next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), []))


def _table_lines(path: Path, separator: str, *, skip: int) -> Iterator[Line]:
    csv.field_size_limit(LONGEST_LINE)
    with _open(path) as file:
        for _ in range(skip):
            file.readline()
        table = csv.DictReader(file, delimiter=separator)
        while True:
            try:
                row: dict[Any, Any] = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield Line(table.line_num + skip, {}, f"not a line of a table: {error}")
                continue
            beyond = row.pop(None, None)
            named = {name.strip(): value for name, value in row.items()}
            problem = "more cells than the table has columns" if beyond else ""
            yield Line(table.line_num + skip, named, problem)


def _parquet(path: Path) -> LogFile:
    connection = duckdb.connect(":memory:")
    try:
        described = connection.execute(DESCRIBE_PARQUET, {"path": str(path)}).fetchall()
        select = ", ".join(_selected(name, kind) for name, kind, *_ in described)
        connection.execute(SELECT_PARQUET.format(columns=select), {"path": str(path)})
    except duckdb.Error as problem:
        connection.close()
        raise SettingsError(f"{path} is not a Parquet file: {problem}") from problem
    names = tuple(str(name) for name, *_ in described)
    return LogFile(_parquet_lines(connection, names), names)


def _parquet_lines(
    connection: "duckdb.DuckDBPyConnection", names: tuple[str, ...]
) -> Iterator[Line]:
    number = 0
    with connection:
        while rows := connection.fetchmany(BATCH):
            for row in rows:
                number += 1
                yield Line(number, dict(zip(names, row, strict=True)))


def _selected(name: str, kind: str) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    # DuckDB's Python client needs pytz to hand these out.
    return f"epoch_us({quoted}) / 1e6" if kind == "TIMESTAMP WITH TIME ZONE" else quoted
