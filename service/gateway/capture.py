"""Capture: every claimed prompt goes to the topic, signed, off the request path.

Requests only append to a queue in memory. A thread encodes, signs and sends; what a killed
gateway loses is what the thread had not flushed yet.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from pipelines.errors import FlywheelError, InvalidMessage
from pipelines.records.mending import MOST_MESSAGES
from pipelines.records.native import NativeRecord, encode_native
from pipelines.records.signature import sign
from pipelines.types import Message
from service.keys import GATEWAY_PRODUCER
from service.metrics.gateway import GatewayMetrics
from service.topics import TopicWriter
from storage.failpoints import passing

log = structlog.get_logger()

EMPTY_SECONDS = 0.03
RETRY_SECONDS = 1.0
# How long one flush may take before the queue is looked after again.
FLUSH_SECONDS = 5.0
MAX_BATCH = 1_000
# What is kept of a prompt that is too long for a record.
MESSAGES_OF_LONG = 10
CHARACTERS_OF_LONG = 1_000


def _written(record: NativeRecord) -> bytes:
    """What JSON cannot hold beside the prompt (a number of 30 digits) costs itself alone."""
    try:
        return encode_native(record)
    except (ValueError, TypeError, OverflowError):
        plain = tuple(Message(message.role, message.content) for message in record.messages)
        return encode_native(replace(record, messages=plain, asked={}, user=None, attributes={}))


def shortened(record: NativeRecord) -> NativeRecord:
    """A prompt that no record can hold: its beginning, counted, and nothing to learn from."""
    kept = record.messages[-MESSAGES_OF_LONG:]
    texts = [message.content for message in record.messages]
    left = sum(min(len(message.content), CHARACTERS_OF_LONG) for message in kept)
    return replace(
        record,
        messages=tuple(
            Message(message.role, message.content[:CHARACTERS_OF_LONG]) for message in kept
        ),
        answer=(record.answer or "")[:CHARACTERS_OF_LONG] or None,
        teacher_answer=None,
        asked={},
        attachments=(record.attachments or ())[:MESSAGES_OF_LONG] or None,
        past=record.past or "long",
        cut=sum(map(len, texts)) - left,
    )


class Capture:
    """A bounded queue and the thread that empties it. Nothing here makes a request fail.

    A topic that is down is kept trying; events wait in the queue meanwhile, and when it is
    full the oldest go, counted.
    """

    def __init__(
        self,
        open_writer: Callable[[], TopicWriter],
        metrics: GatewayMetrics,
        *,
        key: bytes,
        buffer: int,
        max_record_bytes: int,
    ) -> None:
        self._open_writer = open_writer
        self._metrics = metrics
        self._key = key
        self._buffer = buffer
        self._max_record_bytes = max_record_bytes
        self._queue: deque[NativeRecord] = deque()
        self._writer: TopicWriter | None = None
        self._unflushed = 0  # handed to the writer, not known to be durable
        self._failed = 0  # what the writer has given up, as far as it is counted
        self._down = False
        self._stopping = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, record: NativeRecord) -> None:
        """Take one event, at once and always."""
        if len(self._queue) >= self._buffer:
            self._drop_oldest()
        self._queue.append(record)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout_seconds: float) -> None:
        """Send what is queued, as far as the time goes."""
        self._give_up_at = time.monotonic() + timeout_seconds
        self._stopping.set()
        self._thread.join(timeout_seconds + FLUSH_SECONDS)
        if left := len(self._queue) + self._unflushed:
            log.error("capture_lost", events=left)
            self._metrics.capture_dropped.labels("shutdown").inc(left)

    def _drop_oldest(self) -> None:
        try:
            self._queue.popleft()
        except IndexError:  # the thread was faster
            return
        self._metrics.capture_dropped.labels("overflow").inc()

    def _run(self) -> None:
        while not self._stopping.wait(RETRY_SECONDS if self._down else EMPTY_SECONDS):
            self._empty()
        while (self._queue or self._unflushed) and time.monotonic() < self._give_up_at:
            if not self._empty():
                time.sleep(0.1)
        if self._writer is not None:
            self._writer.close()

    def _empty(self) -> bool:
        """Send all that is queued; False: the topic refuses, try later."""
        try:
            writer = self._writer = self._writer or self._open_writer()
            self._flush(writer)
            while self._queue:
                self._hand_over(writer)
                self._flush(writer)
        except FlywheelError as error:
            if not self._down:
                log.error("capture_stalled", error=str(error), queued=len(self._queue))
            self._down = True
            return False
        finally:
            self._metrics.capture_queue.set(len(self._queue) + self._unflushed)
        if self._down:
            log.info("capture_resumed")
        self._down = False
        return True

    def _hand_over(self, writer: TopicWriter) -> None:
        while self._queue and self._unflushed < MAX_BATCH:
            record = self._queue.popleft()
            value = self._encode(record)
            if value is None:
                continue
            try:
                writer.send(
                    value,
                    key=(record.user or record.event_id or "").encode(),
                    headers=sign(value, GATEWAY_PRODUCER, self._key),
                )
            except InvalidMessage:
                self._metrics.capture_dropped.labels("unencodable").inc()
            except FlywheelError:
                self._queue.appendleft(record)
                raise
            else:
                self._unflushed += 1

    def _encode(self, record: NativeRecord) -> bytes | None:
        try:
            if len(record.messages) <= MOST_MESSAGES:
                value = _written(record)
                if len(value) <= self._max_record_bytes:
                    return value
            value = _written(shortened(record))
        except (ValueError, TypeError, OverflowError):
            self._metrics.capture_dropped.labels("unencodable").inc()
            return None
        if len(value) > self._max_record_bytes:
            self._metrics.capture_dropped.labels("too_large").inc()
            return None
        return value

    def _flush(self, writer: TopicWriter) -> None:
        """Wait until all that was handed over is durable. What the writer gave up is counted."""
        if not self._unflushed:
            return
        passing("capture.handed_over")
        try:
            writer.flush(FLUSH_SECONDS)
        finally:
            gone = writer.failed() - self._failed
            self._failed += gone
            self._unflushed = max(0, self._unflushed - gone)
            self._metrics.capture_dropped.labels("given_up").inc(gone)
        passing("capture.flushed")
        self._metrics.captured.inc(self._unflushed)
        self._unflushed = 0
