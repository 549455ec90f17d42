"""A lost database made anew: what it held comes back from what lies beside it, and unbought."""

import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka_broker import topic_name
from learner_rig import asked_again
from lived_in import (
    TASK,
    LivedIn,
    events,
    pending,
    put,
    rows,
    run_flywheel,
    serving,
    wait_for,
)
from operating import Desk, open_desk

from benchmarks.running import running_service
from pipelines.errors import DataDamaged, DataLocked, ExitCode, Refused
from pipelines.records.native import NativeRecord, encode_native
from pipelines.types import Message
from service.care.rebuild.run import rebuild
from service.host.process import lock_data_folder
from service.sections import KafkaSettings
from service.topics.opening import open_writer
from service.topics.topic_file import prune
from storage.database import Database

LABELS = "SELECT event_id, source, label, cost, ledger_key FROM labels"
# Of equal prompts one was asked about again: what the others had for nothing is no record.
VOTES = """
SELECT event_id, repeat, task, first, label, tokens, cost, ledger_key FROM votes WHERE tokens > 0
"""
LEARNT = "SELECT DISTINCT text, side, label FROM samples JOIN effective_labels USING (event_id)"
SIDES = "SELECT event_id, side, group_id, held_out_pi, status FROM samples"
# What a gateway was asked about events that came without its answer is not on the topic.
TRAFFIC = """
SELECT minute, task, sum(events), sum(teacher_served)
FROM traffic GROUP BY ALL
"""
VERSIONS = """
SELECT task, number, digest, dataset, base, recipe, labels_trained, labels_bought FROM students
"""
EVALUATIONS = """
SELECT digest, attempt, champion, snapshot, items, report, verdict, promotable, compared, threshold
FROM evaluations
"""
DECISIONS = "SELECT * FROM decisions"
OFFSETS = "SELECT topic, partition, next_offset, identity FROM offsets"


def quietly(text: str) -> None: ...


def held(database: Path, *queries: str) -> Mapping[str, list[tuple[Any, ...]]]:
    return {query: sorted(rows(database, query), key=repr) for query in queries}


def destroy(data: Path) -> None:
    """The file is no database any more; the log beside it is gone."""
    content = bytearray((data / "flywheel.duckdb").read_bytes())
    content[: 3 * 4096] = b"\0" * (3 * 4096)
    (data / "flywheel.duckdb").write_bytes(content)
    (data / "flywheel.duckdb.wal").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_destroyed_database_comes_back_and_nothing_is_bought_again(
    lived_in: LivedIn, tmp_path: Path
) -> None:
    data, config = lived_in.copy(tmp_path), lived_in.config(tmp_path)
    asked = (LABELS, VOTES, SIDES, TRAFFIC, VERSIONS, EVALUATIONS, DECISIONS, OFFSETS)
    before = held(data / "flywheel.duckdb", *asked)
    destroy(data)
    run_flywheel(config, "learner", code=ExitCode.DATA_DAMAGED)

    said = run_flywheel(config, "rebuild")

    assert f"{len(before[LABELS])} labels, 2 versions, 2 decisions" in said
    assert "events came without a student's answer" in said
    after = held(data / "flywheel.duckdb", *asked)
    for query in asked:
        assert after[query] == before[query], query
    assert len(before[LABELS]) > 350
    assert before[VOTES]

    bills, again = lived_in.bills(), asked_again(data / "ledger")
    with running_service(tmp_path, lived_in.settings) as running:
        champion = before[VERSIONS][1]
        wait_for("the champion", lambda: serving(running).endswith(champion[2][:8]))
        known = wait_for("the first look", lambda: events(running))
        put(running, tmp_path, 5_000, 20)
        wait_for("new events", lambda: events(running) == known + 20)
        wait_for("new labels", lambda: not pending(running))
        found = running.client.get("tasks", TASK, "versions")
        assert [(one["number"], one["state"]) for one in found] == [
            (2, "champion"),
            (1, "approved"),
        ]
    new = Counter(lived_in.bills()[len(bills) :]) - (asked_again(data / "ledger") - again)
    assert 0 < new.total() <= 20
    assert not set(new) & set(bills)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_the_topic_has_forgotten_comes_back_from_ledger_and_datasets(
    lived_in: LivedIn, tmp_path: Path
) -> None:
    data, config = lived_in.copy(tmp_path), lived_in.config(tmp_path)
    before = held(data / "flywheel.duckdb", LEARNT, SIDES, VERSIONS, DECISIONS, OFFSETS)
    gone = prune(data / "topic.sqlite", before_offset=200)
    (data / "flywheel.duckdb").unlink()
    (data / "flywheel.duckdb.wal").unlink(missing_ok=True)

    said = run_flywheel(config, "rebuild")

    assert f"{gone} records are no longer on the topic" in said
    after = held(data / "flywheel.duckdb", LEARNT, SIDES, VERSIONS, DECISIONS, OFFSETS)
    # Of equal prompts one was asked about: the others were only on the topic.
    assert after[LEARNT] == before[LEARNT]
    assert {row[:2] for row in after[SIDES]} <= {row[:2] for row in before[SIDES]}
    for query in (VERSIONS, DECISIONS, OFFSETS):
        assert after[query] == before[query]


@pytest.fixture
def desk_data(tmp_path: Path) -> Path:
    with open_desk(tmp_path / "data") as desk:
        live_through(desk)
    return tmp_path / "data"


def live_through(desk: Desk) -> None:
    version, report = desk.candidate()
    desk.operations.approve("support", version.number, report=report, operator="ann")
    desk.train()


def settings_of(folder: Path) -> Any:
    """The settings of the desk, without its database open."""
    with open_desk(folder / "other") as other:
        return other.settings.model_copy(update={"data_dir": folder / "data"})


def test_the_old_database_is_kept_and_the_count_of_commits_goes_on(
    desk_data: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    noted = int((desk_data / "flywheel.commits").read_text())
    found = rebuild(settings, quietly)
    assert rows(Path(found.kept) / "flywheel.duckdb", "SELECT count(*) FROM decisions") == [(1,)]
    assert int((desk_data / "flywheel.commits").read_text()) > noted
    query = "SELECT operator FROM decisions"
    assert rows(desk_data / "flywheel.duckdb", query) == [("ann",)]
    assert not (desk_data / ".rebuilding").exists()


def test_a_version_that_nobody_judged_has_a_number_again(desk_data: Path, tmp_path: Path) -> None:
    found = rebuild(settings_of(tmp_path), quietly)
    assert found.counts["versions"] == 2
    assert any("never judged" in sentence for sentence in found.lost)
    query = "SELECT number FROM students ORDER BY number"
    assert rows(desk_data / "flywheel.duckdb", query) == [(1,), (2,)]


def test_nothing_is_rebuilt_under_a_running_learner(desk_data: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = (desk_data / "flywheel.duckdb").read_bytes()
    with lock_data_folder(desk_data), pytest.raises(DataLocked):
        rebuild(settings, quietly)
    assert (desk_data / "flywheel.duckdb").read_bytes() == before


def test_without_the_key_nothing_is_rebuilt(desk_data: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    (desk_data / "secrets" / "internal.key").unlink()
    with pytest.raises(Refused, match=r"internal\.key"):
        rebuild(settings, quietly)


def test_a_changed_decision_file_ends_a_rebuild_and_changes_nothing(
    desk_data: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    file = desk_data / "decisions.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"ann"', b'"eve"'))
    before = (desk_data / "flywheel.duckdb").read_bytes()
    with pytest.raises(DataDamaged, match="decision 1 was changed"):
        rebuild(settings, quietly)
    assert (desk_data / "flywheel.duckdb").read_bytes() == before


def test_a_rebuild_that_dies_in_the_exchange_leaves_no_empty_database(
    desk_data: Path, tmp_path: Path
) -> None:
    """The old file is gone, the new one is not there yet: nobody starts from nothing."""
    shutil.move(desk_data / "flywheel.duckdb", tmp_path / "aside.duckdb")
    with pytest.raises(DataDamaged, match="flywheel rebuild"):
        Database(desk_data / "flywheel.duckdb")
    assert rebuild(settings_of(tmp_path), quietly).counts["decisions"] == 1
    query = "SELECT count(*) FROM students"
    assert rows(desk_data / "flywheel.duckdb", query) == [(2,)]


@pytest.mark.kafka
def test_a_brokers_topic_is_read_again_from_its_beginning(
    kafka_broker: Any, desk_data: Path, tmp_path: Path
) -> None:
    kafka = KafkaSettings(
        bootstrap_servers=kafka_broker.bootstrap_servers, topic=topic_name("rebuild")
    )
    settings = settings_of(tmp_path).model_copy(update={"kafka": kafka})
    with closing(open_writer(settings)) as writer:
        for index in range(60):
            record = NativeRecord(
                schema="flywheel.prompt/1",
                event_id=f"e-{index}",
                model="gpt-support",
                messages=(Message("user", f"prompt {index}"),),
            )
            writer.send(encode_native(record), key=b"%d" % index)
        writer.flush(30)
    found = rebuild(settings, quietly)
    assert found.counts["events"] == 60
    query = "SELECT sum(next_offset) FROM offsets"
    assert rows(desk_data / "flywheel.duckdb", query) == [(60,)]
    query = "SELECT sum(events) FROM traffic WHERE task = 'support'"
    assert rows(desk_data / "flywheel.duckdb", query) == [(60,)]
