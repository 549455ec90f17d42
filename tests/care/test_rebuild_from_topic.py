"""Ingest and rebuild read a record alike: a topic read twice gives the same rows."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lived_in import rows
from operating import LABELS, TASK, open_desk
from prometheus_client import CollectorRegistry

from pipelines.records.native import (
    NativeFeedback,
    NativeRecord,
    NativeStudent,
    NativeUsage,
    encode_native,
)
from pipelines.records.signature import sign
from pipelines.types import Message, SampleReason
from service.care.rebuild.run import rebuild
from service.keys import GATEWAY_PRODUCER, open_keys
from service.learner.ingest import Ingest
from service.learner.sampling import Sampling
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.rules import first_policy, intake_rules
from service.sections import SamplingSettings
from service.topics.opening import open_reader, open_writer
from storage.database import Database
from storage.migrate import migrate

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
# All that ingest writes about records, but for the times at which it did.
TABLES = {
    "samples": "* EXCLUDE (sampled_at)",
    "labels": "* EXCLUDE (labelled_at)",
    "groups": "* EXCLUDE (created_at)",
    "traffic": "*",
    "dead_letters": "* EXCLUDE (received_at, replayed_at)",
    "offsets": "topic, partition, next_offset, identity",
}


class NobodyToAsk:
    def assess(self, task: str, events: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Of a task whose every draw takes everything; its data folder is tmp_path/data."""
    draws = SamplingSettings(audit_rate=1.0, held_out_rate=0.5, given_rate=1.0)
    with open_desk(tmp_path / "other", sampling=draws) as desk:
        return desk.settings.model_copy(update={"data_dir": tmp_path / "data"})


def record(number: int, **about: Any) -> NativeRecord:
    said: dict[str, Any] = {
        "schema": "flywheel.prompt/1",
        "event_id": f"e-{number}",
        "model": "gpt-support",
        "occurred_at": AT + timedelta(seconds=number),
        "messages": (Message("user", f"matter {number}: where is parcel {number * 7919}"),),
    }
    return NativeRecord(**{**said, **about})


def answered(number: int, **about: Any) -> NativeRecord:
    """By the teacher, whose own answer is in the record."""
    said = {"served_by": "teacher", "teacher_answer": LABELS[0], "teacher_model": "large-1"}
    return record(
        number, **{**said, "usage": NativeUsage(prompt_tokens=40, completion_tokens=2), **about}
    )


def student(number: int, **about: Any) -> NativeRecord:
    by = NativeStudent(version="support-v1-aaaaaaaa", label=LABELS[1], confidence=0.6)
    return record(number, served_by="student", student=by, answer=LABELS[1], **about)


CORRECTED = NativeFeedback(verdict="bad", correction=LABELS[2])
RECORDS: tuple[NativeRecord | bytes, ...] = (
    *(record(number) for number in range(4)),
    *(answered(number) for number in range(10, 16)),
    *(student(number) for number in range(20, 26)),
    answered(30, feedback=CORRECTED),  # brings its own correction
    student(31, feedback=CORRECTED),
    record(40, event_id="e-20/f1", attributes={"feedback_on": "e-20"}, feedback=CORRECTED),
    answered(50, messages=(Message("user", "   "),)),
    record(60, model="nobody-claims-it"),
    b"\xff not a record",
)


def write(settings: Any) -> None:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    key = open_keys(settings.data_dir).capture
    with closing(open_writer(settings)) as writer:
        for item in RECORDS:
            value = item if isinstance(item, bytes) else encode_native(item)
            writer.send(value, headers=sign(value, GATEWAY_PRODUCER, key))
        writer.flush(10)


@pytest.fixture
def ingested(settings: Any) -> Any:
    """The settings, once everything that was written is in the database."""
    write(settings)
    keys = open_keys(settings.data_dir)
    database = Database(settings.folder.database)
    migrate(database)
    with closing(database), closing(open_reader(settings)) as reader:
        ingest = Ingest(
            reader=reader,
            database=database,
            rules=intake_rules(settings, keys),
            sampling=Sampling({TASK: first_policy(settings, keys.sampling)}),
            assessor=NobodyToAsk(),
            group_salt=keys.sampling,
            settings=settings.ingest.model_copy(update={"min_free_disk_mb": 0}),
            data_dir=settings.data_dir,
            metrics=LearnerMetrics(CollectorRegistry()),
            board=Board(),
        )
        ingest.start()
        while ingest.run_once():
            pass
        ingest.settle()
    return settings


def held(settings: Any) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: sorted(rows(settings.folder.database, f"SELECT {what} FROM {table}"), key=repr)
        for table, what in TABLES.items()
    }


def test_a_topic_read_again_gives_the_rows_that_ingest_gave(ingested: Any) -> None:
    before = held(ingested)
    assert {table: bool(found) for table, found in before.items()} == dict.fromkeys(TABLES, True)
    rebuild(ingested, lambda text: None)
    after = held(ingested)
    for table in TABLES:
        assert after[table] == before[table], table


def test_a_record_that_brings_its_correction_is_chosen_for_it_by_both(ingested: Any) -> None:
    # Rebuild took a correction for a teacher's answer, and gave the record to the draw for those,
    # at that draw's rate. The label is a person's: ingest's rule is the one that is kept.
    query = """
        SELECT reason, source, label FROM samples JOIN labels USING (event_id)
        WHERE event_id IN ('e-30', 'e-31') ORDER BY event_id
    """
    before = rows(ingested.folder.database, query)
    assert [found[1:] for found in before] == [("correction", LABELS[2])] * 2
    assert before[1][0] != SampleReason.GIVEN
    rebuild(ingested, lambda text: None)
    assert rows(ingested.folder.database, query) == before
