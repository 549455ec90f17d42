"""What only Kafka can do to a reader: new partitions, codecs, restarts, broken batches."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import kafka.codec
import pytest
from kafka import KafkaProducer
from kafka_broker import broker_module, topic_name

from pipelines.decode import UNREADABLE_HEADER
from pipelines.errors import BrokerUnavailable, InvalidMessage, SettingsError
from pipelines.types import Record
from service.topics import TopicReader
from service.topics.kafka import KafkaOptions, KafkaTopicReader, KafkaTopicWriter

pytestmark = pytest.mark.kafka


@pytest.fixture
def options(kafka_broker: Any) -> KafkaOptions:
    return KafkaOptions(
        bootstrap_servers=kafka_broker.bootstrap_servers,
        topic=topic_name(),
        partitions=1,
        watch_seconds=0.2,
        connect_timeout_seconds=10,
    )


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    things: list[Any] = []

    def remember(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield remember
    for thing in reversed(things):
        thing.close()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def read(reader: TopicReader, count: int, seconds: float = 30) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += reader.poll(max_records=1000, timeout_seconds=0.2).records
    return records


def produce(options: KafkaOptions, count: int = 1, **settings: Any) -> None:
    """Write with kafka-python directly, as another program would."""
    producer = KafkaProducer(bootstrap_servers=options.bootstrap_servers, linger_ms=50, **settings)
    for i in range(count):
        producer.send(options.topic, value=b"%d" % i)
    producer.flush(20)
    producer.close()


def test_partitions_added_while_running_are_read_from_their_beginning(
    kafka_broker: Any, options: KafkaOptions, opened: Any
) -> None:
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    reader.poll(max_records=1, timeout_seconds=0.1)

    kafka_broker.add_partitions(options.topic, total=3)
    producer = KafkaProducer(bootstrap_servers=options.bootstrap_servers)
    for partition in range(3):
        producer.send(options.topic, value=b"p%d" % partition, partition=partition)
    producer.flush(20)
    producer.close()

    found = {(r.partition, r.offset, r.value) for r in read(reader, 3)}
    assert found == {(0, 0, b"p0"), (1, 0, b"p1"), (2, 0, b"p2")}


def test_partitions_added_while_paused_stay_quiet_until_resumed(
    kafka_broker: Any, options: KafkaOptions, opened: Any
) -> None:
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    reader.pause()
    kafka_broker.add_partitions(options.topic, total=2)
    producer = KafkaProducer(bootstrap_servers=options.bootstrap_servers)
    producer.send(options.topic, value=b"new", partition=1)
    producer.flush(20)
    producer.close()

    until(lambda: reader.poll(max_records=5, timeout_seconds=0.1) == ((), {}) and 1 in reader.lag())
    assert reader.poll(max_records=5, timeout_seconds=0.8).records == ()
    assert reader.lag()[1] == 1
    reader.resume()
    assert [r.value for r in read(reader, 1)] == [b"new"]


@pytest.mark.parametrize("codec", [None, "gzip", "lz4", "zstd", "snappy"])
def test_every_codec_is_read(options: KafkaOptions, opened: Any, codec: str | None) -> None:
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    produce(options, 50, compression_type=codec)
    assert [r.value for r in read(reader, 50)] == [b"%d" % i for i in range(50)]


def test_a_tombstone_arrives_as_a_record_without_value(options: KafkaOptions, opened: Any) -> None:
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    producer = KafkaProducer(bootstrap_servers=options.bootstrap_servers)
    producer.send(options.topic, key=b"gone", value=None, headers=[("h", b"1")])
    producer.flush(20)
    producer.close()
    (record,) = read(reader, 1)
    assert record.value is None
    assert record.headers == (("h", b"1"),)


def test_progress_is_visible_to_lag_tools(
    kafka_broker: Any, options: KafkaOptions, opened: Any
) -> None:
    options = replace(options, group=topic_name("group"))
    produce_to = opened(KafkaTopicWriter(options))
    produce_to.send(b"x")
    produce_to.flush(20)
    reader = KafkaTopicReader(options)
    reader.seek({})
    read(reader, 1)

    reader.report_progress({0: 1})
    until(lambda: kafka_broker.committed_offsets(options.group) == {0: 1})

    reader.report_progress({0: 7})  # the last word is said on the way out
    reader.close()
    assert kafka_broker.committed_offsets(options.group) == {0: 7}


def test_progress_told_to_the_broker_never_decides_where_reading_starts(
    options: KafkaOptions, opened: Any
) -> None:
    first = KafkaTopicReader(options)
    first.seek({})
    produce(options, 10)
    read(first, 10)
    first.report_progress({0: 10})
    first.close()

    second = opened(KafkaTopicReader(options))
    second.seek({0: 4})
    assert [r.offset for r in read(second, 6)] == [4, 5, 6, 7, 8, 9]


def test_the_ends_of_transactions_do_not_look_like_lag(options: KafkaOptions, opened: Any) -> None:
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    producer = KafkaProducer(
        bootstrap_servers=options.bootstrap_servers, transactional_id=topic_name("tx")
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(options.topic, value=b"inside")
    producer.commit_transaction()
    producer.close()

    assert [r.value for r in read(reader, 1)] == [b"inside"]
    positions: dict[int, int] = {}
    until(
        lambda: (
            positions.update(reader.poll(max_records=5, timeout_seconds=0.1).next_offsets)
            or positions == {0: 2}
        )
    )
    until(lambda: reader.lag() == {0: 0})


def test_a_broker_restart_costs_no_record(tmp_path: Any, opened: Any) -> None:
    broker = broker_module().Broker(tmp_path / "own")
    broker.start()
    try:
        options = KafkaOptions(
            bootstrap_servers=broker.bootstrap_servers, topic="t", partitions=1, watch_seconds=0.2
        )
        writer = opened(KafkaTopicWriter(options))
        reader = opened(KafkaTopicReader(options))
        reader.seek({})
        writer.send(b"before")
        writer.flush(20)
        assert [r.value for r in read(reader, 1)] == [b"before"]

        broker.stop()
        until(lambda: reader.poll(max_records=1, timeout_seconds=0.2) == ((), {}))
        until(lambda: bool(reader.problems()))
        assert broker.bootstrap_servers in reader.problems()[0]
        writer.send(b"while down")
        with pytest.raises(BrokerUnavailable, match="not acknowledged"):
            writer.flush(0.5)
        broker.start()

        writer.flush(60)
        assert [r.value for r in read(reader, 1, seconds=60)] == [b"while down"]
        until(lambda: not reader.problems())
    finally:
        broker.stop()


def test_a_stuck_partition_is_noticed_and_read_on(options: KafkaOptions, opened: Any) -> None:
    reader = opened(KafkaTopicReader(replace(options, stuck_after_seconds=1.0)))
    reader.seek({})
    produce(options, 3)
    assert len(read(reader, 3)) == 3
    # The planted fault: the client stops fetching, and nobody but the clock can tell.
    reader._consumer.pause(*reader._consumer.assignment())
    produce(options, 4)

    assert len(read(reader, 4)) == 4
    recreated = reader.recreated
    assert recreated >= 1
    read(reader, 1, seconds=2.5)
    assert reader.recreated == recreated, "it reads, and is left alone"


def test_a_topic_that_was_deleted_is_said(
    kafka_broker: Any, options: KafkaOptions, opened: Any
) -> None:
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    kafka_broker.delete_topic(options.topic)
    until(
        lambda: (
            reader.poll(max_records=1, timeout_seconds=0.1) == ((), {}) and bool(reader.problems())
        )
    )
    assert f"{options.topic} is no longer on" in reader.problems()[0]


def test_a_long_pause_is_not_taken_for_being_stuck(options: KafkaOptions, opened: Any) -> None:
    reader = opened(KafkaTopicReader(replace(options, stuck_after_seconds=2.0)))
    reader.seek({})
    reader.pause()
    produce(options, 3)
    read(reader, 1, seconds=4)
    reader.resume()
    assert len(read(reader, 3)) == 3
    assert reader.recreated == 0


def test_a_batch_in_a_codec_without_library_blocks_only_its_partition(
    kafka_broker: Any, options: KafkaOptions, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka_broker.create_topic(options.topic, partitions=2)
    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    for partition, codec in ((0, "zstd"), (1, "gzip")):
        producer = KafkaProducer(
            bootstrap_servers=options.bootstrap_servers, compression_type=codec
        )
        producer.send(options.topic, value=(b"in %d" % partition) * 99, partition=partition)
        producer.flush(20)
        producer.close()
    monkeypatch.setattr(kafka.codec, "zstd", None)  # as if zstandard were not installed

    assert [r.value for r in read(reader, 1)] == [b"in 1" * 99]
    until(lambda: reader.poll(max_records=5, timeout_seconds=0.1) and bool(reader.problems()))
    (sentence,) = reader.problems()
    assert "Partition 0" in sentence
    assert "zstd" in sentence
    assert "Install" in sentence
    assert reader.lag()[0] == 1

    monkeypatch.undo()
    reader._blocked = {p: (why, 0.0) for p, (why, _) in reader._blocked.items()}  # a minute later
    assert [r.value for r in read(reader, 1)] == [b"in 0" * 99]
    assert list(reader.problems()) == []


def test_a_header_that_is_not_utf8_is_stepped_over_and_accounted_for(
    options: KafkaOptions, opened: Any
) -> None:
    class Misspelt(str):
        """A header name that librdkafka would send and kafka-python would not."""

        def encode(self, *_: Any, **__: Any) -> bytes:
            return b"\xff\xfe"

    reader = opened(KafkaTopicReader(options))
    reader.seek({})
    produce(options, 3)
    producer = KafkaProducer(bootstrap_servers=options.bootstrap_servers, linger_ms=200)
    for i in range(5):
        producer.send(
            options.topic, value=b"bad", headers=[(Misspelt("x"), b"1")] if i == 2 else []
        )
    producer.flush(20)
    producer.close()
    produce(options, 2)

    records = read(reader, 10, seconds=60)

    assert [r.offset for r in records] == list(range(10))
    unreadable = [r for r in records if r.value is None]
    assert 5 in [r.offset for r in unreadable]
    assert {r.headers[0][0] for r in unreadable} == {UNREADABLE_HEADER}
    assert [r.value for r in records[-2:]] == [b"0", b"1"]


def test_a_missing_topic_is_made_with_its_partitions(options: KafkaOptions, opened: Any) -> None:
    reader = opened(KafkaTopicReader(replace(options, partitions=3)))
    assert list(reader.seek({})) == []
    assert reader.lag() == {0: 0, 1: 0, 2: 0}


@pytest.mark.parametrize("kind", [KafkaTopicReader, KafkaTopicWriter])
def test_a_missing_topic_that_must_not_be_made_is_named(options: KafkaOptions, kind: Any) -> None:
    with pytest.raises(SettingsError, match=f"{options.topic} does not exist"):
        kind(replace(options, create_topic=False))


@pytest.mark.parametrize("kind", [KafkaTopicReader, KafkaTopicWriter])
def test_no_broker_is_said_in_a_sentence_that_names_the_servers(kind: Any) -> None:
    port = broker_module().free_port()
    nowhere = KafkaOptions(bootstrap_servers=f"127.0.0.1:{port}", connect_timeout_seconds=1)
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*refused"):
        kind(nowhere)


def test_settings_that_kafka_does_not_know_or_we_decide_are_refused(options: KafkaOptions) -> None:
    with pytest.raises(SettingsError, match="sasl_mechanizm"):
        KafkaTopicReader(replace(options, extra={"sasl_mechanizm": "PLAIN"}))
    with pytest.raises(SettingsError, match="enable_auto_commit"):
        KafkaTopicReader(replace(options, extra={"enable_auto_commit": True}))
    with pytest.raises(SettingsError, match="NOT_A_PROTOCOL"):
        KafkaTopicReader(replace(options, extra={"security_protocol": "NOT_A_PROTOCOL"}))


def test_security_settings_reach_the_client_and_a_refusal_names_them(options: KafkaOptions) -> None:
    encrypted = replace(options, extra={"security_protocol": "SSL"}, connect_timeout_seconds=2)
    with pytest.raises(BrokerUnavailable, match=r"accepts connections.*security_protocol"):
        KafkaTopicReader(encrypted)


def test_a_full_queue_is_refused_at_once(options: KafkaOptions, opened: Any) -> None:
    writer = opened(KafkaTopicWriter(replace(options, extra={"linger_ms": 10_000}), max_queued=10))
    for _ in range(10):
        writer.send(b"x")
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="10 records wait"):
        writer.send(b"one too many")
    assert time.monotonic() - began < 5
    writer.flush(20)
    writer.send(b"again")


def test_a_record_that_is_too_large_is_refused_and_not_counted_as_queued(
    options: KafkaOptions, opened: Any
) -> None:
    writer = opened(KafkaTopicWriter(options, max_queued=1))
    with pytest.raises(InvalidMessage):
        writer.send(b"x" * (2 << 20))
    writer.send(b"fits")
    writer.flush(20)


def test_records_that_are_given_up_are_counted_and_flush_says_so(
    kafka_broker: Any, options: KafkaOptions, opened: Any
) -> None:
    kafka_broker.create_topic(options.topic, settings={"max.message.bytes": "1000"})
    writer = opened(KafkaTopicWriter(replace(options, extra={"max_request_size": 100_000})))
    writer.send(os.urandom(10_000))  # does not compress
    with pytest.raises(BrokerUnavailable, match="1 records were given up"):
        writer.flush(20)
    assert writer.failed() == 1

    until(lambda: writer.replaced == 1)  # the old one would refuse everything from now on
    writer.send(b"small")
    writer.flush(20)
    assert writer.failed() == 1


def test_a_record_larger_than_its_topic_takes_is_refused_before_it_is_sent(
    kafka_broker: Any, options: KafkaOptions, opened: Any
) -> None:
    kafka_broker.create_topic(options.topic, settings={"max.message.bytes": "5000"})
    writer = opened(KafkaTopicWriter(options))
    with pytest.raises(InvalidMessage, match="at most 4800"):
        writer.send(b"x" * 5000)
    writer.send(b"x" * 4000)
    writer.flush(20)
