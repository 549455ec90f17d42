"""Writes to a Kafka topic without waiting. Used through service.topics.kafka."""

from collections.abc import Mapping
from contextlib import suppress
from threading import Condition, Thread
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaProducer, errors

from pipelines.errors import BrokerUnavailable, FlywheelError, InvalidMessage
from pipelines.types import Headers
from service.topics.kafka_connection import (
    ADMIN_SETTINGS,
    CLOSE_SECONDS,
    KafkaOptions,
    check_crc32c,
    check_extra,
    connect,
    ensure_topic,
    largest_record,
    why_unreachable,
)

log = structlog.get_logger(__name__)

PRODUCER_SETTINGS: Mapping[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 20,
    "batch_size": 64 << 10,
    "compression_type": "lz4",
    "allow_auto_create_topics": False,
    "max_block_ms": 1_000,
    "metadata_max_age_ms": 30_000,
    "reconnect_backoff_max_ms": 2_000,
}
MAX_QUEUED_BYTES = 64 << 20
REPLACE_AGAIN_SECONDS = 2.0


class KafkaTopicWriter:
    """Sends without waiting; acknowledged means written by all in-sync replicas.

    kafka-python's idempotent producer never recovers from a record that was given up: every
    later one to the same partition fails too. So the producer is replaced then.
    """

    def __init__(self, options: KafkaOptions, *, max_queued: int = 20_000) -> None:
        check_crc32c()
        check_extra(options.extra)
        self.replaced = 0  # producers
        self._options = options
        self._max_queued = max_queued
        admin = connect(KafkaAdminClient, options, ADMIN_SETTINGS)
        try:
            ensure_topic(admin, options)
            self._settings = {
                **PRODUCER_SETTINGS,
                "max_request_size": largest_record(admin, options),
            }
        finally:
            admin.close()
        self._producer = self._new_producer()
        self._changed = Condition()  # guards all below
        self._queued = 0
        self._queued_bytes = 0
        self._failed = 0
        self._failed_at_flush = 0
        self._last_failure: BaseException | None = None
        self._replacing = False
        self._closed = False

    def send(self, value: bytes, *, key: bytes | None = None, headers: Headers = ()) -> None:
        size = len(value)
        with self._changed:
            self._check_room(size)
            self._queued += 1
            self._queued_bytes += size
        try:
            sent = self._producer.send(
                self._options.topic, value=value, key=key, headers=list(headers)
            )
        except BaseException as problem:
            self._settle(size, None)
            if isinstance(problem, errors.MessageSizeTooLargeError):
                raise InvalidMessage(
                    f"{size} bytes; the topic {self._options.topic} takes at most "
                    f"{self._settings['max_request_size']}"
                ) from problem
            if isinstance(problem, errors.KafkaError):
                raise BrokerUnavailable(why_unreachable(self._options, problem)) from problem
            raise
        sent.add_callback(self._delivered, size)
        sent.add_errback(self._given_up, size)

    def flush(self, timeout_seconds: float) -> None:
        try:
            self._producer.flush(timeout=timeout_seconds)
        except errors.KafkaTimeoutError as problem:
            raise BrokerUnavailable(
                f"{self._queued} records were not acknowledged within {timeout_seconds:g} s by "
                f"{self._options.bootstrap_servers}."
            ) from problem
        with self._changed:
            lost, self._failed_at_flush = self._failed - self._failed_at_flush, self._failed
        if lost:
            raise BrokerUnavailable(
                f"{lost} records were given up since the last flush: {self._last_failure}"
            )

    def failed(self) -> int:
        return self._failed

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        _close(self._producer)

    def _check_room(self, size: int) -> None:
        if self._closed:
            raise BrokerUnavailable("The topic's writer is closed.")
        if self._replacing:
            raise BrokerUnavailable(f"Connecting anew after a failure: {self._last_failure}")
        if self._queued >= self._max_queued or self._queued_bytes + size > MAX_QUEUED_BYTES:
            raise BrokerUnavailable(
                f"{self._queued} records wait for {self._options.bootstrap_servers}"
                + (f": {self._last_failure}" if self._last_failure else "")
            )

    def _delivered(self, size: int, _: Any) -> None:
        self._settle(size, None)

    def _given_up(self, size: int, problem: BaseException) -> None:
        self._settle(size, problem)

    def _settle(self, size: int, problem: BaseException | None) -> None:
        """Runs on the client's thread, so what takes time is left to another."""
        with self._changed:
            self._queued -= 1
            self._queued_bytes -= size
            if problem is None:
                return
            self._failed += 1
            self._last_failure = problem
            if self._replacing or self._closed:
                return
            self._replacing = True
        Thread(target=self._replace_producer, name="kafka-producer-replacer", daemon=True).start()

    def _replace_producer(self) -> None:
        log.warning(
            "kafka_producer_replaced", topic=self._options.topic, why=str(self._last_failure)
        )
        old = self._producer
        while True:
            try:
                new = self._new_producer()
                break
            except FlywheelError as problem:
                with self._changed:
                    self._last_failure = problem
                    if self._changed.wait_for(lambda: self._closed, REPLACE_AGAIN_SECONDS):
                        return
        _close(old)  # what it still holds is delivered or given up, and counted
        with self._changed:
            self._producer = new
            self._replacing = False
            self.replaced += 1
            closed = self._closed
        if closed:
            _close(new)

    def _new_producer(self) -> Any:
        producer = connect(KafkaProducer, self._options, self._settings)
        with suppress(errors.KafkaError):  # so that the first send need not wait for it
            producer.partitions_for(self._options.topic)
        return producer


def _close(producer: Any) -> None:
    try:
        producer.close(timeout=CLOSE_SECONDS)
    except errors.KafkaTimeoutError:
        # close() flushes first, and lets go of nothing when that takes too long.
        producer._sender.force_close()
