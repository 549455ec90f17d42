"""What every topic promises, asked of the embedded one and of a real Kafka broker alike."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from kafka_broker import topic_name

from pipelines.errors import OffsetsLost
from pipelines.types import Record
from service.topics import TopicReader, TopicWriter
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter, prune
from service.topics.kafka import KafkaOptions, KafkaTopicReader, KafkaTopicWriter


class Place(Protocol):
    """One topic of one kind, and what an operator can do to it."""

    def reader(self) -> TopicReader: ...
    def writer(self) -> TopicWriter: ...
    def remove_before(self, offset: int) -> None: ...
    def recreate(self) -> None: ...


class EmbeddedPlace:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "topic.db"

    def reader(self) -> TopicReader:
        return EmbeddedTopicReader(self.path)

    def writer(self) -> TopicWriter:
        return EmbeddedTopicWriter(self.path)

    def remove_before(self, offset: int) -> None:
        prune(self.path, before_offset=offset)

    def recreate(self) -> None:
        for file in self.path.parent.glob("topic.db*"):
            file.unlink()
        EmbeddedTopicWriter(self.path).close()


class KafkaPlace:
    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.options = KafkaOptions(
            bootstrap_servers=broker.bootstrap_servers,
            topic=topic_name(),
            partitions=1,
            watch_seconds=0.2,
        )

    def reader(self) -> TopicReader:
        return KafkaTopicReader(self.options)

    def writer(self) -> TopicWriter:
        return KafkaTopicWriter(self.options)

    def remove_before(self, offset: int) -> None:
        self.broker.delete_records(self.options.topic, before={0: offset})

    def recreate(self) -> None:
        self.broker.delete_topic(self.options.topic)
        self.broker.create_topic(self.options.topic)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "embedded":
        return EmbeddedPlace(tmp_path)
    return KafkaPlace(request.getfixturevalue("kafka_broker"))


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    """Remember what a test opens, and close it."""
    things: list[Any] = []

    def remember(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield remember
    for thing in reversed(things):
        thing.close()


def write(place: Place, *values: bytes) -> None:
    writer = place.writer()
    try:
        for value in values:
            writer.send(value)
        writer.flush(20)
    finally:
        writer.close()


def read(reader: TopicReader, count: int, seconds: float = 20) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += reader.poll(max_records=1000, timeout_seconds=0.2).records
    return records


def test_records_arrive_in_order_with_consecutive_offsets(place: Place, opened: Any) -> None:
    values = [b"%d" % i for i in range(500)]
    write(place, *values)
    reader = opened(place.reader())
    assert reader.seek({}) in ([], ())

    records = read(reader, 500)

    assert [record.value for record in records] == values
    assert [record.offset for record in records] == list(range(500))
    assert {record.partition for record in records} == {0}
    assert all(abs(record.timestamp_ms / 1000 - time.time()) < 60 for record in records)


def test_a_batch_names_where_the_next_one_starts(place: Place, opened: Any) -> None:
    write(place, *[b"%d" % i for i in range(10)])
    reader = opened(place.reader())
    reader.seek({})

    positions: list[int] = []
    while not positions or positions[-1] < 10:
        batch = reader.poll(max_records=4, timeout_seconds=5)
        assert len(batch.records) <= 4
        assert batch.next_offsets == {0: batch.records[-1].offset + 1}
        positions.append(batch.next_offsets[0])

    assert positions[-1] == 10


def test_seek_decides_where_reading_goes_on_and_reopening_redelivers(
    place: Place, opened: Any
) -> None:
    write(place, *[b"%d" % i for i in range(20)])
    first = opened(place.reader())
    first.seek({})
    assert len(read(first, 20)) == 20

    second = opened(place.reader())
    second.seek({0: 7})

    assert [record.offset for record in read(second, 13)] == list(range(7, 20))
    first.seek({0: 18})
    assert [record.offset for record in read(first, 2)] == [18, 19]


def test_a_paused_reader_polls_and_returns_nothing(place: Place, opened: Any) -> None:
    write(place, b"before")
    reader = opened(place.reader())
    reader.seek({})
    assert len(read(reader, 1)) == 1
    reader.pause()
    write(place, b"while paused", b"and more")

    for _ in range(5):
        assert reader.poll(max_records=10, timeout_seconds=0.1) == ((), {})

    reader.resume()
    assert [r.value for r in read(reader, 2)] == [b"while paused", b"and more"]


def test_a_reader_paused_before_its_first_poll_returns_nothing(place: Place, opened: Any) -> None:
    write(place, b"there")
    reader = opened(place.reader())
    reader.seek({})
    reader.pause()
    assert not reader.poll(max_records=10, timeout_seconds=0.7).records
    reader.resume()
    assert len(read(reader, 1)) == 1


def test_lag_counts_what_is_not_read_also_while_paused(place: Place, opened: Any) -> None:
    write(place, *[b"x"] * 30)
    reader = opened(place.reader())
    reader.seek({0: 10})
    assert reader.lag() == {0: 20}
    read(reader, 20)
    assert reader.lag() == {0: 0}
    reader.pause()
    write(place, *[b"y"] * 5)

    deadline = time.monotonic() + 10
    while reader.lag() != {0: 5} and time.monotonic() < deadline:
        reader.poll(max_records=10, timeout_seconds=0.1)
    assert reader.lag() == {0: 5}


def test_headers_come_back_as_they_were_sent(place: Place, opened: Any) -> None:
    headers = (("flywheel-producer", "wärter".encode()), ("empty", b""), ("bytes", b"\x00\xff"))
    writer = opened(place.writer())
    writer.send(b"with", headers=headers)
    writer.send(b"without")
    writer.flush(20)
    reader = opened(place.reader())
    reader.seek({})
    assert [record.headers for record in read(reader, 2)] == [headers, ()]


def test_several_writers_lose_nothing_and_keep_each_ones_order(place: Place, opened: Any) -> None:
    def produce(name: bytes) -> None:
        writer = place.writer()
        for i in range(200):
            writer.send(name + b"-%d" % i)
        writer.flush(30)
        writer.close()

    write(place, b"start")  # the topic is there before they race
    threads = [threading.Thread(target=produce, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = opened(place.reader())
    reader.seek({0: 1})

    values = [record.value or b"" for record in read(reader, 600)]

    for name in (b"a", b"b", b"c"):
        assert [v for v in values if v.startswith(name)] == [name + b"-%d" % i for i in range(200)]


def test_one_writer_is_safe_to_use_from_several_threads(place: Place, opened: Any) -> None:
    writer = opened(place.writer())
    threads = [
        threading.Thread(target=lambda: [writer.send(b"x") for _ in range(300)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush(20)
    assert writer.failed() == 0
    reader = opened(place.reader())
    reader.seek({})
    assert len(read(reader, 1200)) == 1200


def test_what_was_flushed_is_there_for_a_reader_that_opens_later(place: Place, opened: Any) -> None:
    writer = opened(place.writer())
    for i in range(100):
        writer.send(b"%d" % i)
        if i % 25 == 0:
            writer.flush(20)
            reader = place.reader()
            reader.seek({})
            assert reader.lag() == {0: i + 1}
            reader.close()


def test_closing_a_writer_flushes_what_it_holds(place: Place, opened: Any) -> None:
    writer = place.writer()
    writer.send(b"last words")
    writer.close()
    reader = opened(place.reader())
    reader.seek({})
    assert [record.value for record in read(reader, 1)] == [b"last words"]


def test_retention_past_the_stored_offset_is_a_gap_and_reading_goes_on(
    place: Place, opened: Any
) -> None:
    write(place, *[b"%d" % i for i in range(20)])
    place.remove_before(12)
    reader = opened(place.reader())

    assert list(reader.seek({0: 5})) == [(0, 5, 12)]
    assert [record.offset for record in read(reader, 8)] == list(range(12, 20))
    assert list(reader.seek({0: 12})) == []


def test_a_new_reader_starts_at_the_first_record_left_and_sees_no_gap(
    place: Place, opened: Any
) -> None:
    write(place, *[b"%d" % i for i in range(20)])
    place.remove_before(12)
    reader = opened(place.reader())
    assert list(reader.seek({})) == []
    assert read(reader, 8)[0].offset == 12


def test_retention_that_overtakes_a_reader_is_a_gap(place: Place, opened: Any) -> None:
    write(place, *[b"%d" % i for i in range(6)])
    reader = opened(place.reader())
    reader.seek({})
    assert len(read(reader, 6)) == 6
    reader.pause()
    write(place, *[b"%d" % i for i in range(6, 20)])
    place.remove_before(15)
    reader.resume()

    records = read(reader, 5)

    # What the client had fetched ahead may still be handed out; nothing else may be missing.
    gaps = list(reader.take_gaps())
    covered = {r.offset for r in records} | {o for g in gaps for o in range(g.first, g.last)}
    assert covered == set(range(6, 20))
    assert list(reader.take_gaps()) == []


def test_a_stored_offset_beyond_the_end_is_never_reset_silently(place: Place, opened: Any) -> None:
    write(place, b"one", b"two")
    reader = opened(place.reader())
    with pytest.raises(OffsetsLost):
        reader.seek({0: 3})
    with pytest.raises(OffsetsLost):
        reader.seek({0: 1, 7: 1})


def test_the_identity_stays_over_reopening_and_changes_when_the_topic_is_made_anew(
    place: Place, opened: Any
) -> None:
    write(place, b"one")
    first = place.reader()
    identity = first.identity()
    first.close()
    again = place.reader()
    assert again.identity() == identity
    again.close()

    place.recreate()

    assert opened(place.reader()).identity() != identity


def test_a_topic_made_anew_under_a_reader_stops_it(place: Place, opened: Any) -> None:
    write(place, *[b"x"] * 5)
    reader = opened(place.reader())
    reader.seek({})
    read(reader, 5)

    place.recreate()

    with pytest.raises(OffsetsLost):
        read(reader, 1, seconds=20)


def test_a_healthy_reader_has_no_problems(place: Place, opened: Any) -> None:
    write(place, b"x")
    reader = opened(place.reader())
    reader.seek({})
    read(reader, 1)
    assert list(reader.problems()) == []
    reader.report_progress({0: 1})
