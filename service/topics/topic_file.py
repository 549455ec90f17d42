"""The file of an embedded topic: its schema, how it is opened, what its errors mean, retention."""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from pipelines.errors import BrokerUnavailable, DataDamaged, DiskFull, FlywheelError, SettingsError
from storage.failpoints import passing

APPLICATION_ID = 0x464C5957  # "FLYW"
VERSION = 1
BUSY_TIMEOUT_SECONDS = 30.0
PRUNE_CHUNK = 5_000
NEARLY_FULL_BYTES = 1 << 20

CREATE = f"""
CREATE TABLE head (
    identity TEXT NOT NULL,
    first_offset INTEGER NOT NULL,
    next_offset INTEGER NOT NULL
);
CREATE TABLE records (
    record_offset INTEGER PRIMARY KEY,
    timestamp_ms INTEGER NOT NULL,
    value BLOB,
    headers BLOB
);
PRAGMA user_version = {VERSION};
PRAGMA application_id = {APPLICATION_ID};
"""
INSERT_HEAD = "INSERT INTO head VALUES (:identity, 0, 0)"
SELECT_HEAD = "SELECT identity, first_offset, next_offset FROM head"
SELECT_FIRST_SINCE = """
SELECT record_offset FROM records WHERE timestamp_ms >= :cutoff ORDER BY record_offset LIMIT 1
"""
DELETE_BEFORE = "DELETE FROM records WHERE record_offset < :limit"
SET_FIRST_OFFSET = "UPDATE head SET first_offset = :limit"

# What SQLite calls a file that is not one of its own, or is torn.
DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
UNUSABLE = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")


class Head(NamedTuple):
    """Which topic this is, and which offsets it holds: [first, next)."""

    identity: str
    first_offset: int
    next_offset: int


def open_file(path: Path) -> sqlite3.Connection:
    """Open the topic, or create it. A file of somebody else is refused unchanged."""
    with translated(path):
        is_new = _create_private(path)
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _check_or_create(connection, path)
            # Acknowledged means durable: every commit waits for the disk.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        except BaseException:
            connection.close()
            raise
    if is_new:
        _sync_folder(path.parent)
    return connection


def read_head(connection: sqlite3.Connection) -> Head:
    return Head(*connection.execute(SELECT_HEAD).fetchone())


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit on success, roll back on any exception."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        passing("topic.written")
        connection.execute("COMMIT")
        passing("topic.committed")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, with what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as problem:
        raise as_ours(problem, path) from problem


def as_ours(problem: sqlite3.Error | OSError, path: Path) -> FlywheelError:
    name = getattr(problem, "sqlite_errorname", None) or type(problem).__name__
    if name == "SQLITE_FULL" or _nearly_full(path):
        return DiskFull(
            f"No space left for the topic file {path}: free some on its disk, shorten the "
            "topic's retention, or raise its size limit. Nothing that was acknowledged is lost."
        )
    if name.startswith(DAMAGED):
        return DataDamaged(
            f"{path} is not a topic file of flywheel, or it is damaged ({name}). Nothing was "
            "changed. Restore it, or move it away and start with an empty topic."
        )
    if name.startswith(UNUSABLE) or isinstance(problem, OSError):
        return SettingsError(
            f"The topic file {path} cannot be used: {problem}. Check the path and its permissions."
        )
    return BrokerUnavailable(f"The topic file {path} could not be used ({name}): {problem}.")


def prune(path: Path, *, before_offset: int | None = None, older_than_ms: int | None = None) -> int:
    """Remove records below the offset, or written before the time; with both, only what
    both allow. Returns how many went. Readers behind them see a gap."""
    with translated(path), closing(open_file(path)) as connection:
        head = read_head(connection)
        limit = head.next_offset if before_offset is None else before_offset
        if older_than_ms is not None:
            row = connection.execute(SELECT_FIRST_SINCE, {"cutoff": older_than_ms}).fetchone()
            limit = min(limit, head.next_offset if row is None else row[0])
        elif before_offset is None:
            return 0
        limit = min(limit, head.next_offset)
        first = head.first_offset
        while first < limit:  # in pieces, so that writers never wait for long
            first = min(limit, first + PRUNE_CHUNK)
            with transaction(connection):
                connection.execute(DELETE_BEFORE, {"limit": first})
                connection.execute(SET_FIRST_OFFSET, {"limit": first})
        # As a script, because `execute` stops after the first of its steps: one page.
        connection.executescript("PRAGMA incremental_vacuum")
        return max(0, limit - head.first_offset)


def _check_or_create(connection: sqlite3.Connection, path: Path) -> None:
    # Both in one snapshot: between two, another process may create the topic.
    with transaction(connection, "DEFERRED"):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID:
        if application or tables:
            raise DataDamaged(
                f"{path} is a database of another program. Nothing was changed. "
                "Choose another place for the topic."
            )
        _create(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise DataDamaged(
            f"The topic file {path} has format {version}; this version of flywheel reads format "
            f"{VERSION}. Nothing was changed."
        )


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible while it is empty
    _set_wal(connection)
    with transaction(connection):
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:  # another process was quicker
            return
        for statement in filter(str.strip, CREATE.split(";")):
            connection.execute(statement)
        connection.execute(INSERT_HEAD, {"identity": str(uuid4())})


def _set_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for this lock by itself when several processes start at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _create_private(path: Path) -> bool:
    """Prompts are private: only the owner reads them. SQLite gives its side files the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _nearly_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < NEARLY_FULL_BYTES
    except OSError:
        return False
