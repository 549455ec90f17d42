"""A durable topic in one SQLite file, for hosts without a broker: many writers, one reader."""

import os
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import NamedTuple

import msgspec

from pipelines.errors import (
    BrokerUnavailable,
    DataDamaged,
    FlywheelError,
    InvalidMessage,
    OffsetsLost,
    TimedOut,
)
from pipelines.types import Headers, Record
from service.topics import Batch, Gap
from service.topics.topic_file import (
    Head,
    as_ours,
    open_file,
    prune,
    read_head,
    transaction,
    translated,
)

__all__ = ["EmbeddedTopicReader", "EmbeddedTopicWriter", "prune"]

PARTITION = 0  # the only one
LINGER_SECONDS = 0.02
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 5.0
GROUP_RECORDS = 2_000
MAX_RECORD_BYTES = 16 << 20
MAX_BATCH_BYTES = 32 << 20
MAX_QUEUED_BYTES = 64 << 20
LONGEST_NAP_SECONDS = 0.05
FILE_CHECK_SECONDS = 1.0

SELECT_RECORDS = """
SELECT record_offset, value, headers, timestamp_ms FROM records
WHERE record_offset >= :position ORDER BY record_offset LIMIT :limit
"""
INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?, ?)"
SET_NEXT_OFFSET = "UPDATE head SET next_offset = :next_offset"

_PACK = msgspec.msgpack.Encoder().encode
_UNPACK = msgspec.msgpack.Decoder(Headers).decode


class EmbeddedTopicReader:
    """Reads the file from a position that the caller keeps."""

    def __init__(self, path: Path, *, name: str = "flywheel.prompts") -> None:
        self.name = name
        self._path = path
        self._connection = open_file(path)
        self._lock = Lock()  # lag() is asked for by other threads
        self._opened = _file_id(path)
        self._checked_at = time.monotonic()
        self._position = 0
        self._drained_at: int | None = None  # the data version at which nothing was left
        self._paused = False
        self._gaps: list[Gap] = []

    def identity(self) -> str:
        return self._head().identity

    def seek(self, next_offsets: Mapping[int, int]) -> Sequence[Gap]:
        head = self._head()
        unknown = [partition for partition in next_offsets if partition != PARTITION]
        wanted = next_offsets.get(PARTITION, head.first_offset)
        if unknown or wanted > head.next_offset:
            raise OffsetsLost(
                f"The topic {self.name} in {self._path} ends at offset {head.next_offset}; we have "
                f"read to {dict(next_offsets)}. It was replaced or restored from a copy: restore "
                "the right file, or say that reading may start anew."
            )
        gap = Gap(PARTITION, wanted, head.first_offset)
        self._position = max(wanted, head.first_offset)
        self._drained_at = None
        return (gap,) if gap.first < gap.last else ()

    def poll(self, *, max_records: int, timeout_seconds: float) -> Batch:
        deadline = time.monotonic() + timeout_seconds
        nap = 0.002
        while True:
            self._check_file()
            before = self._position
            records = () if self._paused else self._read(max_records)
            if self._position != before:
                return Batch(records, {PARTITION: self._position})
            left = deadline - time.monotonic()
            if left <= 0:
                return Batch((), {})
            time.sleep(min(nap, left))
            nap = min(nap * 2, LONGEST_NAP_SECONDS)

    def take_gaps(self) -> Sequence[Gap]:
        gaps, self._gaps = self._gaps, []
        return gaps

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def report_progress(self, next_offsets: Mapping[int, int]) -> None:
        """Nobody else looks at this topic's lag: ask `lag`."""

    def lag(self) -> Mapping[int, int]:
        return {PARTITION: self._head().next_offset - self._position}

    def problems(self) -> Sequence[str]:
        return ()  # whatever goes wrong with a file is raised by `poll`

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _head(self) -> Head:
        with self._lock, translated(self._path):
            return read_head(self._connection)

    def _read(self, max_records: int) -> Sequence[Record]:
        with self._lock, translated(self._path):
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._drained_at:
                return ()
            with transaction(self._connection, "DEFERRED"):
                self._step_over_gap(read_head(self._connection))
                rows = self._connection.execute(
                    SELECT_RECORDS, {"position": self._position, "limit": max_records}
                )
                records = _take(rows)
        if records:
            self._position = records[-1].offset + 1
        else:
            self._drained_at = version
        return records

    def _step_over_gap(self, head: Head) -> None:
        if self._position < head.first_offset:
            self._gaps.append(Gap(PARTITION, self._position, head.first_offset))
            self._position = head.first_offset

    def _check_file(self) -> None:
        """A file that was moved away or replaced lives on for whoever has it open."""
        now = time.monotonic()
        if now - self._checked_at < FILE_CHECK_SECONDS:
            return
        self._checked_at = now
        if _file_id(self._path) != self._opened:
            raise OffsetsLost(
                f"The topic file {self._path} was deleted or replaced while it was being read."
            )


class _Queued(NamedTuple):
    timestamp_ms: int
    value: bytes
    headers: bytes | None


class EmbeddedTopicWriter:
    """Queues records; a thread commits them in groups, each with one wait for the disk."""

    def __init__(
        self, path: Path, *, max_queued: int = 10_000, max_file_bytes: int | None = None
    ) -> None:
        self._path = path
        self._max_queued = max_queued
        self._connection = open_file(path)
        if max_file_bytes is not None:
            self._limit_size(max_file_bytes)
        self._changed = Condition()  # guards all below
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._sent = 0
        self._durable = 0
        self._hurry = False  # somebody waits in flush
        self._closing = False
        self._give_up_at = float("inf")
        self._problem: FlywheelError | None = None
        self._failed = 0
        self._thread = Thread(target=self._run, name="embedded-topic-writer", daemon=True)
        self._thread.start()

    def send(self, value: bytes, *, key: bytes | None = None, headers: Headers = ()) -> None:
        """One partition only, so the key decides nothing."""
        if len(value) > MAX_RECORD_BYTES:
            raise InvalidMessage(f"{len(value)} bytes; a topic takes at most {MAX_RECORD_BYTES}")
        queued = _Queued(int(time.time() * 1000), value, _PACK(headers) if headers else None)
        with self._changed:
            if self._closing:
                raise BrokerUnavailable("The topic's writer is closed.")
            if isinstance(self._problem, DataDamaged):
                raise self._problem
            if len(self._queue) >= self._max_queued or self._queued_bytes > MAX_QUEUED_BYTES:
                raise BrokerUnavailable(
                    f"{len(self._queue)} records wait to be written to {self._path}: "
                    f"{self._problem or 'the disk is slower than the traffic'}"
                )
            self._queue.append(queued)
            self._queued_bytes += len(value)
            self._sent += 1
            if len(self._queue) in (1, GROUP_RECORDS):
                self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        with self._changed:
            target = self._sent
            self._hurry = True
            self._problem = None  # whatever it was, it has to happen again
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._durable >= target or self._problem is not None, timeout_seconds
            )
            if self._durable >= target:
                return
            if self._problem is not None:
                raise self._problem
            raise BrokerUnavailable(
                f"{target - self._durable} records were not on disk within {timeout_seconds:g} s."
            )

    def failed(self) -> int:
        return self._failed

    def close(self) -> None:
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._give_up_at = time.monotonic() + CLOSE_SECONDS
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS + RETRY_SECONDS + 5)
        if self._thread.is_alive():
            raise TimedOut(f"Writing to {self._path} does not end: is its disk still there?")
        self._connection.close()

    def _run(self) -> None:
        while group := self._next_group():
            problem = self._commit(group)
            with self._changed:
                self._problem = problem
                if problem is None:
                    self._forget(group)
                    self._durable += len(group)
                elif self._closing and time.monotonic() > self._give_up_at:
                    self._failed += len(self._queue)
                    self._queue.clear()
                else:
                    self._changed.notify_all()
                    self._changed.wait(RETRY_SECONDS)
                self._changed.notify_all()

    def _next_group(self) -> list[_Queued]:
        """Wait for records, and a moment longer for company. Empty: closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(
                lambda: self._closing or self._hurry or len(self._queue) >= GROUP_RECORDS,
                LINGER_SECONDS,
            )
            self._hurry = False
            return list(self._queue)  # they stay queued until they are durable

    def _commit(self, group: list[_Queued]) -> FlywheelError | None:
        try:
            with transaction(self._connection):
                at = read_head(self._connection).next_offset
                self._connection.executemany(
                    INSERT_RECORD,
                    ((at + i, r.timestamp_ms, r.value, r.headers) for i, r in enumerate(group)),
                )
                self._connection.execute(SET_NEXT_OFFSET, {"next_offset": at + len(group)})
        except sqlite3.Error as problem:
            return as_ours(problem, self._path)
        return None

    def _forget(self, group: list[_Queued]) -> None:
        for record in group:
            self._queue.popleft()
            self._queued_bytes -= len(record.value)

    def _limit_size(self, max_file_bytes: int) -> None:
        with translated(self._path):
            (page,) = self._connection.execute("PRAGMA page_size").fetchone()
            self._connection.execute(f"PRAGMA max_page_count = {max(1, max_file_bytes // page)}")


def _take(rows: sqlite3.Cursor) -> Sequence[Record]:
    """As many rows as fit into one batch's memory."""
    records = []
    size = 0
    for offset, value, headers, timestamp_ms in rows:
        records.append(
            Record(PARTITION, offset, value, _UNPACK(headers) if headers else (), timestamp_ms)
        )
        size += len(value or b"")
        if size > MAX_BATCH_BYTES:
            break
    rows.close()
    return records


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
