"""A Kafka topic through kafka-python, which only this file and its kafka_ neighbours import."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any

import structlog
from kafka import (
    KafkaAdminClient,
    KafkaConsumer,
    OffsetAndMetadata,
    OffsetSpec,
    TopicPartition,
    errors,
)

from pipelines.decode import UNREADABLE_HEADER
from pipelines.errors import (
    FlywheelError,
    OffsetsLost,
    SettingsError,
)
from pipelines.types import Headers, Record
from service.topics import Batch, Gap
from service.topics.kafka_connection import (
    ADMIN_SETTINGS,
    CLOSE_SECONDS,
    KafkaOptions,
    Sighting,
    check_crc32c,
    check_extra,
    connect,
    ensure_topic,
    look,
    offsets_at,
    translated,
    why_unreachable,
)
from service.topics.kafka_writer import KafkaTopicWriter

__all__ = ["KafkaOptions", "KafkaTopicReader", "KafkaTopicWriter"]

log = structlog.get_logger(__name__)

CONSUMER_SETTINGS: Mapping[str, Any] = {
    # No group: partitions are assigned by us and positions kept by the caller.
    "group_id": None,
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "allow_auto_create_topics": False,
    # What is fetched ahead has to fit into a sidecar's memory.
    "fetch_max_bytes": 8 << 20,
    "max_partition_fetch_bytes": 1 << 20,
    "metadata_max_age_ms": 30_000,
    "reconnect_backoff_max_ms": 2_000,
}
BLOCKED_RETRY_SECONDS = 60.0
PROBE_MS = 1_500


class KafkaTopicReader:
    """Reads every partition from positions that the caller keeps.

    Used by one thread; `lag` and `problems` may be asked for by any. A second thread looks
    at the topic every few seconds, so that no question to the broker ever delays a poll.
    """

    def __init__(self, options: KafkaOptions) -> None:
        check_crc32c()
        check_extra(options.extra)
        self.name = options.topic
        self.recreated = 0  # consumers that had to be replaced
        self._options = options
        self._admin = connect(KafkaAdminClient, options, ADMIN_SETTINGS)
        try:
            ensure_topic(self._admin, options)
            self._seen = look(self._admin, options)
            self._consumer = connect(KafkaConsumer, options, CONSUMER_SETTINGS)
        except BaseException:
            self._admin.close()
            raise
        self._handled = self._seen
        self._positions: dict[int, int] = {}
        self._moved_at: dict[int, tuple[int, float]] = {}  # position, and since when
        self._checked_at = time.monotonic()
        self._blocked: dict[int, tuple[str, float]] = {}  # why, and until when
        self._paused = False
        self._gaps: list[Gap] = []
        self._progress: Mapping[int, int] = {}
        self._progress_lock = Lock()
        self._progress_refused: list[str] = []
        self._unreachable: str | None = None
        self._stop = Event()
        self._watcher = Thread(target=self._watch, name="kafka-topic-watcher", daemon=True)
        self._watcher.start()

    def identity(self) -> str:
        return self._handled.identity

    def seek(self, next_offsets: Mapping[int, int]) -> Sequence[Gap]:
        with translated(self._options):
            self._handled = self._seen = look(self._admin, self._options)
            gaps = self._place(next_offsets)
        return gaps

    def poll(self, *, max_records: int, timeout_seconds: float) -> Batch:
        self._notice_changes()
        if not self._positions:
            time.sleep(timeout_seconds)
            return Batch((), {})
        try:
            polled = self._consumer.poll(
                timeout_ms=int(timeout_seconds * 1000), max_records=max_records
            )
            moved = {} if polled else self._moved_silently()
        except errors.OffsetOutOfRangeError:
            return self._step_over_gaps()
        except errors.LogTruncationError as problem:
            raise OffsetsLost(
                f"The broker lost records of {self.name} that we have read ({problem}). "
                "Decide whether to read on from what it still has."
            ) from problem
        except errors.AuthorizationError as problem:
            raise SettingsError(
                f"We may not read {self.name}: {problem}. Give our user READ and DESCRIBE on it."
            ) from problem
        except Exception as problem:
            return self._go_around(problem)
        return self._batch(polled) if polled else Batch((), moved)

    def take_gaps(self) -> Sequence[Gap]:
        gaps, self._gaps = self._gaps, []
        return gaps

    def pause(self) -> None:
        self._paused = True
        self._apply_pauses()

    def resume(self) -> None:
        self._paused = False
        self._apply_pauses()

    def report_progress(self, next_offsets: Mapping[int, int]) -> None:
        with self._progress_lock:
            self._progress = {**self._progress, **next_offsets}

    def lag(self) -> Mapping[int, int]:
        ends = self._seen.ends
        return {p: max(0, ends.get(p, 0) - at) for p, at in self._positions.copy().items()}

    def problems(self) -> Sequence[str]:
        blocked = [sentence for sentence, _ in self._blocked.copy().values()]
        return (*blocked, self._unreachable) if self._unreachable else blocked

    def close(self) -> None:
        self._stop.set()
        self._consumer.close(autocommit=False, timeout_ms=1_000)
        self._watcher.join(CLOSE_SECONDS)
        self._admin.close()

    # What a poll does besides polling

    def _batch(self, polled: Mapping[Any, Sequence[Any]]) -> Batch:
        records: list[Record] = []
        next_offsets = {}
        new = tuple.__new__  # a third of the time of Record(...), and this runs for every record
        for partition, found in polled.items():
            p = partition.partition
            # By position, as the client's tuples have them: 3 offset, 4 time, 7 value, 8 headers.
            records += [
                new(Record, (p, r[3], r[7], _headers(r[8]) if r[8] else (), r[4])) for r in found
            ]
            next_offsets[p] = found[-1][3] + 1
        self._positions.update(next_offsets)
        return Batch(records, next_offsets)

    def _moved_silently(self) -> Mapping[int, int]:
        """Positions that moved over what is not handed out, such as ends of transactions."""
        moved = {}
        for p, at in self._positions.items():
            if p in self._blocked:
                continue
            position = self._consumer.position(TopicPartition(self.name, p), timeout_ms=0)
            if position is not None and position > at:
                moved[p] = position
        self._positions.update(moved)
        return moved

    def _step_over_gaps(self) -> Batch:
        """Retention overtook us: count what is gone, and go on behind it."""
        before = dict(self._positions)
        with translated(self._options):
            self._gaps += self._place(before)
        return Batch((), {p: at for p, at in self._positions.items() if at != before.get(p)})

    def _place(self, next_offsets: Mapping[int, int]) -> Sequence[Gap]:
        """Put every partition where it should be, as far as the broker still has it."""
        partitions = [TopicPartition(self.name, p) for p in self._seen.ends]
        firsts = offsets_at(self._admin, partitions, OffsetSpec.EARLIEST, self._options)
        ends = offsets_at(self._admin, partitions, OffsetSpec.LATEST, self._options)
        lost = {p: at for p, at in next_offsets.items() if at > ends.get(p, -1)}
        if lost:
            raise OffsetsLost(
                f"We have read partitions {sorted(lost)} of {self.name} to {lost}, but they end at "
                f"{ {p: ends.get(p, 'nothing') for p in lost} }. The topic was re-created or "
                "restored: decide whether to read it from the start."
            )
        gaps = [Gap(p, at, firsts[p]) for p, at in sorted(next_offsets.items()) if at < firsts[p]]
        self._positions = {p: max(next_offsets.get(p, 0), first) for p, first in firsts.items()}
        self._assign()
        return gaps

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self.name, p) for p in self._positions])
        for p, at in self._positions.items():
            self._consumer.seek(TopicPartition(self.name, p), at)
        self._apply_pauses()

    def _apply_pauses(self) -> None:
        for p in self._positions:
            partition = TopicPartition(self.name, p)
            if self._paused or p in self._blocked:
                self._consumer.pause(partition)
            else:
                self._consumer.resume(partition)

    def _notice_changes(self) -> None:
        """Act on what the watcher saw. Cheap when it saw nothing new."""
        seen, now = self._seen, time.monotonic()
        if seen is self._handled:
            return
        if seen.identity != self._handled.identity:
            raise OffsetsLost(
                f"The topic {self.name} was deleted and created again while we were reading it. "
                "Decide whether to read the new one from its start."
            )
        self._handled = seen
        added = [p for p in seen.ends if p not in self._positions]
        over = [p for p, (_, until) in self._blocked.items() if now >= until]
        for p in over:
            del self._blocked[p]
        if self._positions and (added or over):
            self._positions.update(dict.fromkeys(added, 0))
            self._assign()
            log.info("kafka_partitions_added", topic=self.name, partitions=added)
        if self._is_stuck(seen, now):
            self._replace_consumer("stuck")
            self._assign()

    def _is_stuck(self, seen: Sighting, now: float) -> bool:
        """Whether a position stood still for long while there was something to read."""
        if now - self._checked_at > 3 * max(self._options.watch_seconds, 1.0):
            self._moved_at.clear()  # nobody polled, or nothing was to be seen: no evidence
        self._checked_at = now
        stuck = False
        for p, at in self._positions.items():
            before, since = self._moved_at.get(p, (-1, now))
            busy = not self._paused and p not in self._blocked and at < seen.ends.get(p, 0)
            if not busy or at != before:
                self._moved_at[p] = (at, now)
            elif now - since > self._options.stuck_after_seconds:
                stuck = True
        return stuck

    def _replace_consumer(self, why: str) -> None:
        self.recreated += 1
        self._moved_at.clear()
        log.warning("kafka_consumer_replaced", topic=self.name, why=why)
        with suppress(Exception):  # it is the broken one
            self._consumer.close(autocommit=False, timeout_ms=1_000)
        self._consumer = connect(KafkaConsumer, self._options, CONSUMER_SETTINGS)

    # Records that cannot even be taken apart

    def _go_around(self, problem: Exception) -> Batch:
        """One unreadable batch must not end everything: find it, tell it, read the rest.

        After any such error the consumer is replaced: kafka-python keeps the half-read batch
        and would turn on it forever.
        """
        self._replace_consumer(f"{type(problem).__name__}: {problem}"[:200])
        records: list[Record] = []
        for p, at in list(self._positions.items()):
            found = None if p in self._blocked else self._probe(p, at)
            if found is None:
                continue
            if _is_malformed(found):
                records += self._unreadable_records(p, at)
                continue
            self._blocked[p] = (
                _why_blocked(self.name, p, at, found),
                time.monotonic() + BLOCKED_RETRY_SECONDS,
            )
            log.error("kafka_partition_blocked", topic=self.name, partition=p, offset=at)
        next_offsets = {r.partition: r.offset + 1 for r in records}
        self._positions.update(next_offsets)
        self._assign()
        return Batch(records, next_offsets)

    def _probe(self, partition: int, at: int) -> Exception | None:
        """What goes wrong when the record at this offset is read; None: nothing."""
        tp = TopicPartition(self.name, partition)
        try:
            self._consumer.assign([tp])
            self._consumer.seek(tp, at)
            self._consumer.poll(timeout_ms=PROBE_MS, max_records=1)
        except Exception as problem:
            self._replace_consumer("probe")
            return problem
        return None

    def _unreadable_records(self, partition: int, at: int) -> Sequence[Record]:
        """A stand-in for each record of an unreadable batch, so that each is accounted for."""
        step = 1
        while self._probe(partition, at + step) is not None:
            step *= 2
        bad, good = step // 2, step
        while good - bad > 1:
            middle = (bad + good) // 2
            if self._probe(partition, at + middle) is None:
                good = middle
            else:
                bad = middle
        reason = ((UNREADABLE_HEADER, b"malformed as Kafka records go, or in one batch with such"),)
        return [Record(partition, at + i, None, reason, -1) for i in range(good)]

    # The second thread

    def _watch(self) -> None:
        pause = min(1.0, self._options.watch_seconds)
        looked_at = time.monotonic()
        while not self._stop.wait(pause):
            try:
                self._commit_progress()
                if time.monotonic() - looked_at >= self._options.watch_seconds:
                    self._seen = look(self._admin, self._options)
                    looked_at = time.monotonic()
                self._unreachable = None
            except FlywheelError as problem:
                self._unreachable = str(problem)
            except (errors.KafkaError, OSError, RuntimeError) as problem:
                self._unreachable = why_unreachable(self._options, problem)
        with suppress(Exception):  # a gauge is not worth a failed shutdown
            self._commit_progress()

    def _commit_progress(self) -> None:
        with self._progress_lock:
            progress, self._progress = self._progress, {}
        if not progress:
            return
        offsets = {
            TopicPartition(self.name, p): OffsetAndMetadata(at, "", -1)
            for p, at in progress.items()
        }
        try:
            answers = self._admin.alter_group_offsets(self._options.group, offsets)
            refused = {e for e in answers.values() if e is not errors.NoError}
        except errors.KafkaError as problem:
            refused = {type(problem)}
        if not refused:
            return
        with self._progress_lock:  # to be told next time, unless there is news by then
            self._progress = {**progress, **self._progress}
        # A group that is just being set up refuses for a while; that is nobody's business.
        lasting = sorted(e.__name__ for e in refused if not issubclass(e, errors.RetriableError))
        if lasting and lasting != self._progress_refused:
            log.warning("kafka_progress_refused", group=self._options.group, why=lasting)
        self._progress_refused = lasting


def _headers(pairs: Sequence[tuple[str, bytes | None]]) -> Headers:
    # A plain loop that nearly always finds nothing: this runs for every record.
    for _, content in pairs:
        if content is None:
            return tuple((name, content or b"") for name, content in pairs)
    return tuple(pairs)  # type: ignore[arg-type]


def _is_malformed(problem: Exception) -> bool:
    """Whether a producer wrote it so: its checksum holds, but its parts make no sense."""
    return isinstance(problem, errors.CorruptRecordError) and "structure" in str(problem)


def _why_blocked(topic: str, partition: int, at: int, problem: Exception) -> str:
    what = f"Partition {partition} of {topic} cannot be read beyond offset {at}: {problem}. "
    if isinstance(problem, errors.UnsupportedCodecError):
        return what + "Install the library for its compression (lz4, zstandard, python-snappy)."
    return what + "It is tried again every minute; the other partitions are read meanwhile."
