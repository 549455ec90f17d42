"""Ingest over a real Kafka broker, against a consumer that merely polls the same topic.

    make bench BENCHMARKS=ingest      (needs Java and Maven; ARGS=--quick for a short run)

The topic is filled by the product's own writer with signed records of about 1 kB, as a gateway
writes them. Then by turns: a bare consumer with the learner's settings polls all of it, and the
learner's ingest (decode, sample, sums, one durable DuckDB transaction a poll) reads all of it.
The embedded topic is measured against plain SQLite in the same way.
"""

import argparse
import gc
import itertools
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from benchmarks.results import ROOT, write_results
from benchmarks.traffic import TASK, gateway_records
from pipelines.errors import BrokerUnavailable
from pipelines.intake import Rules
from pipelines.rates import DayBudget, affordable_rate
from pipelines.records.common import DecodePolicy
from pipelines.sample import HELD_OUT_SHARE_OF_GROUPS, SamplingPolicy
from pipelines.types import Headers, PromptEvent, StudentAnswer
from service.host.memory import collect_rarely
from service.keys import GATEWAY_PRODUCER
from service.learner.ingest import Ingest
from service.learner.sampling import Sampling
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.rules import first_policy
from service.settings import Settings
from service.topics import TopicReader, TopicWriter
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter
from service.topics.kafka import CONSUMER_SETTINGS, KafkaOptions, KafkaTopicReader, KafkaTopicWriter
from service.topics.kafka_connection import connect
from storage.database import Database
from storage.migrate import migrate

KEY = b"k" * 32
SALT = b"s" * 32
TOPIC = "ingest-benchmark"
PARTITIONS = 3
POLL_SECONDS = 0.5
# What `service.learner.sampling` makes of the default rates and the default label budget at a
# steady 100 events/s; the learning draw stands at its floor.
EVENTS_A_DAY = 100 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is read, and how often."""

    records: int = 200_000
    rounds: int = 5
    embedded_records: int = 30_000
    seed: int = 0


QUICK = Plan(records=4_000, rounds=1, embedded_records=2_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Records a second: of the floor and of ours, one after the other."""

    floor: float
    ours: float


def measure_kafka(plan: Plan, folder: Path, bootstrap_servers: str) -> dict[str, list[Round]]:
    """Rounds with the rates of a busy learner, and with the rates of the settings."""
    options = KafkaOptions(bootstrap_servers=bootstrap_servers, topic=TOPIC, partitions=PARTITIONS)
    writer = KafkaTopicWriter(options)
    fill(writer, _records(plan.records, plan.seed))
    writer.close()

    def poll() -> float:
        return poll_all(options, plan.records)

    def ingest(policy: SamplingPolicy) -> float:
        return ingest_all(lambda: KafkaTopicReader(options), plan.records, folder, policy)

    poll()  # the broker's and the client's first steps
    return {
        name: [_round(f"kafka, {name}", poll, partial(ingest, policy)) for _ in range(rounds)]
        for name, policy, rounds in (
            ("busy", busy_policy(), plan.rounds),
            ("defaults", default_policy(), max(1, plan.rounds // 2)),
        )
    }


def measure_embedded(plan: Plan, folder: Path) -> tuple[list[Round], list[Round]]:
    """(reading, writing): the embedded topic against SQLite without any of it."""
    records = list(_records(plan.embedded_records, plan.seed))
    reading, writing = [], []
    for turn in range(plan.rounds):
        plain, topic = folder / f"plain-{turn}.sqlite", folder / f"topic-{turn}.sqlite"
        writing.append(
            _round(
                "embedded, writing",
                partial(write_plain, plain, records),
                partial(write_topic, topic, records),
            )
        )
        reading.append(
            _round(
                "embedded, reading",
                partial(read_plain, plain, len(records)),
                partial(read_topic, topic, len(records)),
            )
        )
    return reading, writing


# The floors and ours. Each returns records a second.


def poll_all(options: KafkaOptions, count: int) -> float:
    """A bare consumer with the learner's settings: poll, and look at nothing."""
    consumer = connect(KafkaConsumer, options, CONSUMER_SETTINGS)
    partitions = [TopicPartition(options.topic, p) for p in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    most, patience = Settings().ingest.max_records, int(POLL_SECONDS * 1000)

    def poll() -> int:
        polled = consumer.poll(timeout_ms=patience, max_records=most)
        return sum(map(len, polled.values()))

    try:
        return _rate(poll, count)
    finally:
        consumer.close(autocommit=False)


def ingest_all(
    open_reader: Callable[[], TopicReader], count: int, folder: Path, policy: SamplingPolicy
) -> float:
    """The learner's ingest into a fresh database, until all is durable."""
    with (
        _collecting_rarely(),
        tempfile.TemporaryDirectory(dir=folder) as name,
        _ingest(open_reader, Path(name), policy) as (ingest, database),
    ):
        rate = _rate(ingest.run_once, count, ingest.settle)
        with database.snapshot() as tx:
            (stored,) = tx.execute("SELECT sum(events) FROM traffic").fetchall()[0]
        if stored != count:
            raise RuntimeError(f"{stored} events were stored, {count} were sent")
        return rate


def write_plain(path: Path, records: Sequence[tuple[bytes, Headers]]) -> float:
    """Plain SQLite in the mode of the topic's file, a transaction for each of its groups."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
        "CREATE TABLE records (at INTEGER PRIMARY KEY, time INTEGER, value BLOB, headers BLOB)"
    )
    rows = iter(
        (at, 0, value, repr(headers).encode()) for at, (value, headers) in enumerate(records)
    )

    def group() -> int:
        chosen = list(itertools.islice(rows, 2_000))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", chosen)
        connection.execute("COMMIT")
        return len(chosen)

    try:
        return _rate(group, len(records))
    finally:
        connection.close()


def read_plain(path: Path, count: int) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    most, at = Settings().ingest.max_records, 0

    def batch() -> int:
        nonlocal at
        found = connection.execute(
            "SELECT at, value, headers, time FROM records WHERE at >= ? ORDER BY at LIMIT ?",
            (at, most),
        ).fetchall()
        at = found[-1][0] + 1
        return len(found)

    try:
        return _rate(batch, count)
    finally:
        connection.close()


def write_topic(path: Path, records: Sequence[tuple[bytes, Headers]]) -> float:
    writer = EmbeddedTopicWriter(path)
    started = time.perf_counter()
    fill(writer, records)
    seconds = time.perf_counter() - started
    writer.close()
    return len(records) / seconds


def read_topic(path: Path, count: int) -> float:
    reader = EmbeddedTopicReader(path)
    reader.seek({})
    most = Settings().ingest.max_records
    # Else the figure hangs on how many modules are loaded: that decides on full collections.
    with closing(reader), _collecting_rarely():
        return _rate(
            lambda: len(reader.poll(max_records=most, timeout_seconds=POLL_SECONDS).records), count
        )


def fill(writer: TopicWriter, records: Iterable[tuple[bytes, Headers]]) -> None:
    """Send all, and return when all is durable."""
    for at, (value, headers) in enumerate(records, start=1):
        while True:
            try:
                writer.send(value, key=str(at).encode(), headers=headers)
                break
            except BrokerUnavailable:  # its queue is full
                writer.flush(60)
    writer.flush(60)


# The learner's ingest, as the daemon wires it.


@contextmanager
def _ingest(
    open_reader: Callable[[], TopicReader], folder: Path, policy: SamplingPolicy
) -> Iterator[tuple[Ingest, Database]]:
    settings = _settings(folder)
    database = Database(folder / "flywheel.duckdb", memory_mb=settings.learner.database_memory_mb)
    migrate(database)
    reader = open_reader()
    try:
        ingest = Ingest(
            reader=reader,
            database=database,
            rules=Rules(
                tasks={TASK.name: TASK},
                decoding=DecodePolicy(
                    claims=settings.claims(),
                    tasks=frozenset(settings.tasks),
                    producer_keys={GATEWAY_PRODUCER: KEY},
                    own_producers=frozenset({GATEWAY_PRODUCER}),
                    user_salt=SALT,
                    max_bytes=settings.ingest.max_record_bytes,
                ),
                teacher=settings.teacher.policy,
                terms="scripted",
            ),
            sampling=Sampling({TASK.name: policy}),
            assessor=_NobodyAsks(),
            group_salt=SALT,
            settings=settings.ingest,
            data_dir=folder,
            metrics=LearnerMetrics(CollectorRegistry()),
            board=Board(),
        )
        ingest.start()
        yield ingest, database
    finally:
        reader.close()
        database.close()


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """As the learner's process is set up; a bare consumer's is left as Python makes it."""
    before = gc.get_threshold()
    collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _NobodyAsks:
    """All events carry the student's answer, so that nothing is left to assess."""

    def assess(self, task: str, events: Sequence[PromptEvent]) -> dict[str, StudentAnswer]:
        raise RuntimeError("an event came without its answer")


def _settings(folder: Path) -> Settings:
    options: dict[str, Any] = {
        "data_dir": folder,
        "tasks": {TASK.name: {"models": list(TASK.models), "labels": list(TASK.labels)}},
    }
    return Settings(**options)


def default_policy() -> SamplingPolicy:
    """The rates of the settings, with enough labels to be choosy."""
    return replace(first_policy(_settings(Path()), SALT), cold_start=False)


def busy_policy() -> SamplingPolicy:
    """What `pipelines.rates` makes of them at 100 events/s with the default budget."""
    budget = _settings(Path()).budget
    purses = DayBudget(
        calls=budget.label_calls, tokens=budget.label_tokens, money=budget.label_money
    ).purses()
    held_out_side = EVENTS_A_DAY * HELD_OUT_SHARE_OF_GROUPS
    return replace(
        default_policy(),
        audit_rate=affordable_rate(purses["audit"], EVENTS_A_DAY, 0.0),
        held_out_rate=affordable_rate(purses["held_out"], held_out_side, 0.0),
        learning_scale=0.01,
    )


def _records(count: int, seed: int) -> Iterator[tuple[bytes, Headers]]:
    return gateway_records(count, seed=seed, key=KEY, until=datetime.now(UTC))


def _rate(step: Callable[[], int], count: int, finish: Callable[[], None] = lambda: None) -> float:
    """Call `step` until it has handled so many records; returns records a second."""
    gc.collect()
    started = time.perf_counter()
    done = 0
    while done < count:
        done += step()
    finish()
    return done / (time.perf_counter() - started)


def _round(name: str, floor: Callable[[], float], ours: Callable[[], float]) -> Round:
    found = Round(floor=floor(), ours=ours())
    print(
        f"{name}: floor {found.floor:,.0f}/s, ours {found.ours:,.0f}/s, "
        f"ratio {found.ours / found.floor:.2f}",
        flush=True,
    )
    return found


def _figures(name: str, rounds: Sequence[Round]) -> dict[str, float]:
    return {
        f"{name}_per_second": round(statistics.median(one.ours for one in rounds)),
        f"{name}_floor_per_second": round(statistics.median(one.floor for one in rounds)),
    }


def ratio(rounds: Sequence[Round]) -> float:
    """The median of the rounds' ratios: a disturbance spoils one round."""
    return round(statistics.median(one.ours / one.floor for one in rounds), 3)


def run(plan: Plan, folder: Path) -> tuple[dict[str, float], Mapping[str, list[Round]]]:
    """All figures, and the rounds that they come from."""
    sys.path.insert(0, str(ROOT / "deploy" / "kafka"))
    from broker import Broker  # type: ignore[import-not-found]  # a script, not a package

    broker = Broker(folder / "kafka")
    broker.start()
    try:
        kafka = measure_kafka(plan, folder, broker.bootstrap_servers)
    finally:
        broker.stop()
    reading, writing = measure_embedded(plan, folder)
    figures = {
        "ratio_to_poll": ratio(kafka["busy"]),
        "ratio_to_poll_default_rates": ratio(kafka["defaults"]),
        "embedded_read_to_sqlite": ratio(reading),
        "embedded_write_to_sqlite": ratio(writing),
        **_figures("ingest", kafka["busy"]),
        **_figures("embedded_read", reading),
        **_figures("embedded_write", writing),
    }
    return figures, {**kafka, "embedded_read": reading, "embedded_write": writing}


def main() -> None:
    """Run the benchmark and write `benchmarks/results/ingest.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes no results")
    chosen = parser.parse_args()
    plan = replace(QUICK if chosen.quick else Plan(), seed=chosen.seed)
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        figures, rounds = run(plan, Path(folder))
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not chosen.quick:
        write_results(
            "ingest",
            figures,
            seed=plan.seed,
            records=plan.records,
            rounds={name: [asdict(one) for one in found] for name, found in rounds.items()},
        )


if __name__ == "__main__":
    main()
