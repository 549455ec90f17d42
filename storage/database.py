"""The one DuckDB connection of this process, and its transactions."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

import duckdb

from pipelines.errors import DataDamaged, DataLocked, DiskFull
from storage.failpoints import passing

Cursor = duckdb.DuckDBPyConnection

LOOK_MEMORY_MB = 256
COUNT_COMMIT = "UPDATE commits SET count = count + 1 RETURNING count"
SELECT_COMMITS = "SELECT count FROM commits"
SELECT_TABLES = "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'main'"
HAS_COMMITS = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'commits'"
SELECT_APPLICATION = "SELECT value FROM meta WHERE key = 'application'"


class Database:
    """Owns the file. DuckDB lets one process hold it, so nobody else opens it.

    Each transaction runs on its own cursor, and a lock keeps writers in line: two that
    touch one row would otherwise abort each other. After each commit a counter is synced
    to a side file, because DuckDB drops a torn end of its log without a word.
    """

    def __init__(self, path: Path, *, memory_mb: int = 256) -> None:
        self._path = path
        self._counter_path = path.with_suffix(".commits")
        self._connection = _connect(path, memory_mb)
        self._write_lock = RLock()
        self._closed = False
        self._counting = False
        try:
            self._refuse_foreign()
            self._refuse_truncated()
            self._counter = os.open(self._counter_path, os.O_RDWR | os.O_CREAT, 0o644)
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Commit on success, roll back on any exception. Durable when it returns."""
        with self._write_lock, self._connection.cursor() as cursor:
            cursor.begin()
            try:
                yield cursor
                count = self._count_commit(cursor)
                passing("database.counted")
                cursor.commit()
            except BaseException as error:
                with suppress(duckdb.Error):  # the failure itself may have ended it
                    cursor.rollback()
                if _is_disk_full(error):
                    raise DiskFull(
                        f"no space left for the database in {self._path.parent}; free some, "
                        "and the learner goes on where it stopped"
                    ) from error
                raise
            passing("database.committed")
            self._note_commit(count)
            passing("database.noted")

    @contextmanager
    def snapshot(self, note: Callable[[], None] | None = None) -> Iterator[Cursor]:
        """Read one consistent state without blocking writers.

        With `note`, the state between two write transactions, at which `note` is called.
        """
        with self._connection.cursor() as cursor:
            if note is None:
                cursor.begin()
            else:
                with self._write_lock:
                    cursor.begin()
                    cursor.execute(SELECT_TABLES).fetchall()  # the first read decides the state
                    note()
            try:
                yield cursor
            finally:
                with suppress(duckdb.Error):
                    cursor.rollback()

    def checkpoint(self) -> None:
        """Fold the log into the file and give space back; the next time, when others are at it."""
        # DuckDB may refuse it for the sake of a transaction that has only just ended.
        refused = suppress(duckdb.TransactionException)
        with self._write_lock, self._connection.cursor() as cursor, refused:
            cursor.execute("CHECKPOINT")

    def close(self) -> None:
        """Safe to call twice."""
        with self._write_lock:
            if not self._closed:
                self._closed = True
                self._connection.close()
                os.close(self._counter)

    def _refuse_foreign(self) -> None:
        tables = _scalar(self._connection, SELECT_TABLES)
        if not tables:
            return
        try:
            application = _scalar(self._connection, SELECT_APPLICATION)
        except duckdb.CatalogException:
            application = None
        if application != "flywheel":
            raise DataDamaged(
                f"{self._path} is a DuckDB file of another program; nothing was changed. "
                "Set data_dir to a folder of flywheel's own"
            )

    def _refuse_truncated(self) -> None:
        if not self._counter_path.exists():
            return
        try:
            noted = int(self._counter_path.read_bytes().strip() or 0)
        except ValueError as error:
            raise DataDamaged(
                f"{self._counter_path} holds no number of commits: it was changed. Remove it to "
                "go on with what the database has"
            ) from error
        known = _scalar(self._connection, HAS_COMMITS)
        present = int(_scalar(self._connection, SELECT_COMMITS)) if known else 0
        if present < noted:
            raise DataDamaged(
                f"{self._path} ends at commit {present}, but {noted} were acknowledged: its log "
                "was cut. `flywheel rebuild` makes it anew from topic, ledger, artifacts and "
                f"decisions; or restore a backup, or remove {self._counter_path.name} to go on "
                "without what is missing"
            )

    def _count_commit(self, cursor: Cursor) -> int:
        self._counting = self._counting or bool(_scalar(cursor, HAS_COMMITS))
        if not self._counting:  # before the first migration
            return 0
        return int(_scalar(cursor, COUNT_COMMIT))

    def _note_commit(self, count: int) -> None:
        os.pwrite(self._counter, f"{count:<20}\n".encode(), 0)
        os.fdatasync(self._counter)


def _connect(path: Path, memory_mb: int, *, read_only: bool = False) -> Cursor:
    path.parent.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "memory_limit": f"{memory_mb}MB",
        "threads": 2,
        "allocator_background_threads": True,  # see storage/__init__.py
        "temp_directory": str(path.parent / "duckdb-temp"),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    try:
        return duckdb.connect(str(path), config=config, read_only=read_only)
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            raise DataLocked(
                f"another process holds {path}; one learner may use a data folder. "
                "Stop it, or set another data_dir"
            ) from error
        raise DataDamaged(_unreadable(path, error)) from error
    except duckdb.Error as error:
        raise DataDamaged(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be opened: {error}. Nothing was changed. `flywheel rebuild` makes it anew "
        "from topic, ledger, artifacts and decisions; or restore a backup"
    )


def _is_disk_full(error: BaseException) -> bool:
    return isinstance(error, duckdb.Error) and "no space left" in str(error).lower()


def _scalar(cursor: Cursor, query: str) -> Any:
    rows = cursor.execute(query).fetchall()
    return rows[0][0] if rows else None


def first_row(result: Cursor) -> tuple[Any, ...] | None:
    """The first row, with the result drained.

    `fetchone` would leave the stream open, and with it a transaction: DuckDB then keeps every
    old version of every row, and never folds its log into the file.
    """
    rows = result.fetchall()
    return rows[0] if rows else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What a database that nobody holds says of itself."""

    commits: int
    noted: int  # in the side file
    migrations: Sequence[str]
    offsets: Mapping[str, Mapping[str, int]]


def look_inside(path: Path) -> Inside:
    """Read a database file without changing it. Raises `DataDamaged` or `DataLocked`."""
    connection = _connect(path, LOOK_MEMORY_MB, read_only=True)
    try:
        commits = _scalar(connection, SELECT_COMMITS)
        migrations = connection.execute("SELECT name FROM schema_migrations").fetchall()
        rows = connection.execute("SELECT topic, partition, next_offset FROM offsets").fetchall()
    except duckdb.Error as error:
        raise DataDamaged(f"{path} cannot be read: {error}") from error
    finally:
        connection.close()
    offsets: dict[str, dict[str, int]] = {}
    for topic, partition, offset in rows:
        offsets.setdefault(topic, {})[str(partition)] = int(offset)
    return Inside(
        commits=int(commits or 0),
        noted=noted_commits(path),
        migrations=[name for (name,) in migrations],
        offsets=offsets,
    )


def noted_commits(path: Path) -> int:
    """The commits that were acknowledged for this database; 0 where nobody noted any."""
    try:
        return int(path.with_suffix(".commits").read_bytes().strip() or 0)
    except (OSError, ValueError):
        return 0


def set_commits(cursor: Cursor, count: int) -> None:
    """Let the count of commits go on from here."""
    cursor.execute("UPDATE commits SET count = $count", {"count": count})


def row_counts(cursor: Cursor, tables: Sequence[str]) -> dict[str, int]:
    return {name: int(_scalar(cursor, f"SELECT count(*) FROM {name}")) for name in tables}


def sql_text(text: str) -> str:
    """A text as a literal, where DuckDB takes no parameter."""
    return "'" + text.replace("'", "''") + "'"


def to_db_time(moment: datetime) -> datetime:
    """UTC without tzinfo: the DuckDB client needs pytz to read TIMESTAMPTZ back."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def from_db_time(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


def from_db_time_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else from_db_time(moment)
