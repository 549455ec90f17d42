"""Records that nobody should send, through the whole ingest: each is an event or a dead letter."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.chaos.witnesses import LABELS, TASK, text_of
from pipelines.intake import Rules
from pipelines.records.common import DecodePolicy
from pipelines.records.native import SCHEMA, NativeRecord, encode_native
from pipelines.records.signature import sign
from pipelines.types import Message
from service.keys import GATEWAY_PRODUCER
from service.learner.ingest import Ingest
from service.learner.sampling import Sampling
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.rules import first_policy
from service.sections import IngestSettings, TaskSettings
from service.settings import Settings
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter
from storage.database import Database
from storage.migrate import migrate

KEY = b"k" * 32
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 10**30, 1e308, "", " ", "\ud800", "\x00", "x" * 5_000, [], {}, [[[]]],
    {"a": {"b": None}}, "2026-13-45", "9999-12-31T23:59:59+00:00", "\u202e", float("inf"),
)  # fmt: skip


class Nobody:
    """Stands where the gateway's assessment is: it is down."""

    def assess(self, task: str, events: Any) -> dict[str, Any]:
        return {}


def record(dice: random.Random, number: int) -> bytes:
    """A sound record, spoilt in one of many ways; some stay sound."""
    text, label = text_of(number)
    sound = encode_native(
        NativeRecord(
            schema=SCHEMA,
            event_id=f"fuzz-{number}",
            model=TASK,
            occurred_at=datetime.now(UTC),
            messages=(Message("user", text),),
            answer=label,
        )
    )
    way = dice.randrange(8)
    if way == 0:
        return sound
    if way == 1:
        return dice.randbytes(dice.randrange(200))
    if way == 2:
        return sound[: dice.randrange(len(sound))]
    if way == 3:
        return _with_flipped_bytes(dice, sound)
    content = json.loads(sound)
    if way == 4:
        content[dice.choice(list(content))] = dice.choice(ODD_VALUES)
    elif way == 5:
        del content[dice.choice(list(content))]
    elif way == 6:
        content["messages"] = [
            {"role": dice.choice(ODD_VALUES), "content": dice.choice(ODD_VALUES)}
        ]
    else:
        return b"[" * dice.randrange(1, 3_000) + sound
    return json.dumps(content, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")


def _with_flipped_bytes(dice: random.Random, sound: bytes) -> bytes:
    spoilt = bytearray(sound)
    for _ in range(dice.randrange(1, 6)):
        spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
    return bytes(spoilt)


def fuzz(folder: Path, records: int, *, seed: int) -> Mapping[str, float]:
    """Send and ingest so many; what came of them, as the database has it."""
    dice = random.Random(seed)
    writer = EmbeddedTopicWriter(folder / "fuzz.sqlite", max_queued=records + 1)
    for number in range(records):
        value = record(dice, number)
        signed = dice.random() < 0.3
        writer.send(value, headers=sign(value, GATEWAY_PRODUCER, KEY) if signed else ())
        if number % 1_000 == 999:
            writer.flush(120)
    writer.flush(120)
    writer.close()
    return _ingested(folder, records)


def _ingested(folder: Path, records: int) -> Mapping[str, float]:
    task = TaskSettings(models=[TASK], labels=list(LABELS))
    settings = Settings(data_dir=folder, tasks={TASK: task})
    database = Database(folder / "fuzz.duckdb")
    migrate(database)
    reader = EmbeddedTopicReader(folder / "fuzz.sqlite")
    ingest = Ingest(
        reader=reader,
        database=database,
        rules=Rules(
            tasks={TASK: settings.task_of(TASK)},
            decoding=DecodePolicy(
                claims=settings.claims(),
                tasks=frozenset({TASK}),
                producer_keys={GATEWAY_PRODUCER: KEY},
                own_producers=frozenset({GATEWAY_PRODUCER}),
                user_salt=b"salt",
            ),
            teacher=settings.teacher.policy,
            terms=None,
        ),
        sampling=Sampling({TASK: first_policy(settings, b"s" * 32)}),
        assessor=Nobody(),
        group_salt=b"s" * 32,
        # Most of it is rubbish on purpose: that must not pause it here.
        settings=IngestSettings(
            max_dead_letter_rate=1.0, min_free_disk_mb=0, poll_timeout=timedelta(0)
        ),
        data_dir=folder,
        metrics=LearnerMetrics(CollectorRegistry()),
        board=Board(),
    )
    ingest.start()
    read = 0
    while count := ingest.run_once():
        read += count
    with database.snapshot() as tx:
        events = int(tx.execute("SELECT coalesce(sum(events), 0) FROM traffic").fetchall()[0][0])
        letters = int(tx.execute("SELECT count(*) FROM dead_letters").fetchall()[0][0])
    reader.close()
    database.close()
    return {
        "fuzzed_records": records,
        "fuzzed_events": events,
        "fuzzed_dead_letters": letters,
        "fuzzed_unaccounted": abs(records - events - letters) + abs(records - read),
    }
