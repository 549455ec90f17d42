"""A data folder of the first version starts under this one, and shows what it held."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from lived_in import rows, run_flywheel, wait_for
from operating import LABELS, TASK, open_desk

from benchmarks.running import running_service
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter
from storage.database import Database
from storage.migrate import MIGRATIONS, migrate
from storage.versions import versions

FIRST = MIGRATIONS / "001_first.sql"
STUDENT, REPORT, DATASET, ENCODER = "a" * 64, "b" * 64, "c" * 64, "d" * 64
TRAINING = json.dumps({"examples": 40, "seed": 0})
MESSAGES = json.dumps([{"role": "user", "content": "where is my parcel"}])
# A row for every table, as the first version wrote them: columns in the order of its file.
ROWS: dict[str, tuple[Any, ...]] = {
    "offsets": ("flywheel.prompts", 0, 7, "topic-1", "2026-01-05 10:00:00"),
    "gaps": ("flywheel.prompts", 0, 2, 4, "2026-01-05 10:00:00"),
    "traffic": (
        "2026-01-05 10:00:00", "support", "support-v1-aaaaaaaa", "refund",
        5, 5, 3, 2, 4.5, 4.1, 2.7, 2.4, [0] * 19 + [5],
    ),
    "groups": ("e-1", "support", "training", "where is my parcel", "2026-01-05 10:00:00"),
    "samples": (
        "e-1", "support", "2026-01-05 10:00:00", "2026-01-05 10:00:01", MESSAGES,
        "where is my parcel", "audit", 0.05, None, None, "p1", "e-1", "training", "delivery",
        "student", "support-v1-aaaaaaaa", "delivery", 0.9, 0.1, "user-hash", "{}",
        "flywheel.prompts", 0, 6, "labelled", None,
    ),
    "labels": (
        "e-1", "bought", "support", "delivery", 1.0, 1, "large-1", "pv1", "contract 1",
        40, 2, 0.0003, "k" * 64, "2026-01-05 10:00:02",
    ),
    "dead_letters": (
        "flywheel.prompts", 0, 5, b"\xff\xfe", "[]", "not UTF-8", "2026-01-05 10:00:00", None,
    ),
    "datasets": (DATASET, "support", None, 41, 40, 8, "2026-01-05 11:00:00", "2026-01-05 11:00:01"),
    "training_runs": (
        "run-1", "support", DATASET, "head", "200 labels", "2026-01-05 11:00:02",
        "2026-01-05 11:00:10", "succeeded", None, STUDENT,
    ),
    "students": (
        "support", 1, STUDENT, DATASET, ENCODER, "head", 40, 41, "2026-01-05 11:00:10", 8.0,
        TRAINING,
    ),
    "evaluations": (
        "support", STUDENT, 1, None, "5" * 64, 40, REPORT, "better", True, True, 0.62, 0.83,
        "2026-01-05 11:00:20",
    ),
    "ticks": (
        "retention", "2026-01-05 11:00:00", "2026-01-05 11:00:00", "2026-01-05 11:00:01", "done",
        "x",
    ),
    "pauses": ("train", "ada", "2026-01-05 12:00:00"),
    "leases": (
        "l-1", "gateway-1", "2026-01-05", "2026-01-05 10:00:00", "2026-01-05 10:00:30",
        50, 1.0, 3, 0.1, True,
    ),
    "estimates": ("support", "2026-01-05 12:00:00", 0.8, 0.7, 0.9, 0.97, 0.95, 0.99, 0.5),
}  # fmt: skip
SETTINGS = f"""
[gateway]
port = 0
[learner]
port = 0
[retention]
unlabelled_samples = "9999d"
labelled_samples = "9999d"
traffic = "9999d"
dead_letters = "9999d"
[schedule]
retention = "every 24h"
[tasks.support]
models = ["gpt-support"]
labels = {json.dumps(LABELS)}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The first version's folder, made by its own migration."""
    folder = tmp_path / "data"
    folder.mkdir()
    with duckdb.connect(str(folder / "flywheel.duckdb")) as connection:
        connection.execute("CREATE TABLE schema_migrations (name TEXT PRIMARY KEY)")
        connection.execute(FIRST.read_text())
        connection.execute("INSERT INTO schema_migrations VALUES (?)", [FIRST.name])
        for table, row in ROWS.items():
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", list(row))
        connection.execute("UPDATE commits SET count = 16")
        connection.execute("UPDATE offsets SET identity = ?", [_topic(folder)])
    (folder / "flywheel.commits").write_text(f"{16:<20}\n")
    return folder


def _topic(folder: Path) -> str:
    """Seven records that were read; returns the topic's identity."""
    with closing(EmbeddedTopicWriter(folder / "topic.sqlite")) as writer:
        for _ in range(7):
            writer.send(b"{}")
        writer.flush(10)
    with closing(EmbeddedTopicReader(folder / "topic.sqlite")) as reader:
        return reader.identity()


def test_every_table_of_the_first_version_has_a_row_in_this_test() -> None:
    with duckdb.connect(":memory:") as connection:
        connection.execute(FIRST.read_text())
        found = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    # The decision is written with its file, by the program.
    assert {name for (name,) in found} == {*ROWS, "meta", "commits", "decisions"}


def test_no_row_is_lost_on_the_way_through_all_migrations(data: Path) -> None:
    database = Database(data / "flywheel.duckdb")
    later = sorted(path.name for path in MIGRATIONS.glob("*.sql"))[1:]
    assert migrate(database) == later
    assert migrate(database) == []
    database.close()
    for table in ROWS:
        assert rows(data / "flywheel.duckdb", f"SELECT count(*) FROM {table}") == [(1,)], table
    held = rows(data / "flywheel.duckdb", "SELECT base, training FROM students")
    assert held == [(ENCODER, TRAINING)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_learner_starts_on_it_and_shows_what_it_held(data: Path, tmp_path: Path) -> None:
    query = "SELECT * FROM labels JOIN samples USING (event_id)"
    before = rows(data / "flywheel.duckdb", query)
    with running_service(tmp_path, SETTINGS) as running:
        client = running.client
        (version,) = client.get("tasks", "support", "versions")
        assert (version["number"], version["student"], version["base"]) == (1, STUDENT, ENCODER)
        assert version["state"] == "waiting"
        assert version["report"] == REPORT
        status = wait_for("the first look", lambda: _looked(client.get("status")))
        (task,) = status["tasks"]
        assert task["figures"]["labels_bought"] == 1
        assert task["figures"]["events_total"] == 5
        assert task["last_run"]["run_id"] == "run-1"
        assert status["dead_letters"] == 1
        assert [job["job"] for job in status["jobs"] if job["paused"]] == ["train"]
        (letter,) = client.get("dead-letters")
        assert letter["reason"] == "not UTF-8"
    columns = len(before[0])  # those that came later are at the end
    assert [row[:columns] for row in rows(data / "flywheel.duckdb", query)] == before
    said = run_flywheel(running.config, "backup", str(tmp_path / "backup.tar"))
    assert "Serving: nothing yet" in said


def _looked(status: dict[str, Any]) -> dict[str, Any] | None:
    return status if status["tasks"][0]["figures"]["events_total"] else None


def test_a_folder_of_the_version_before_is_opened_and_goes_on(tmp_path: Path) -> None:
    """Versions had no family then, and the manifests of their students name none."""
    folder = tmp_path / "data"
    with open_desk(folder) as desk:
        first, report = desk.candidate()
        desk.operations.approve(TASK, first.number, report=report, operator="ann")
        second, its_report = desk.candidate()
        before = desk.operations.versions(TASK)
        assert "family" not in desk.artifacts.open("student", first.student).about
    take_back_the_last_migration(folder / "flywheel.duckdb")
    live = (folder / "live.json").read_bytes()

    with open_desk(folder) as desk:
        assert (folder / "live.json").read_bytes() == live
        assert desk.operations.versions(TASK) == before
        with desk.database.snapshot() as tx:
            held = {(one.family, one.base_kind) for one in versions(tx, TASK)}
        assert held == {("head", "encoder")}
        desk.operations.approve(TASK, second.number, report=its_report, operator="ann")
        desk.operations.rollback(TASK, None, operator="ann", reason="only a try")
        champion = next(v for v in desk.operations.versions(TASK) if v.state == "champion")
        assert champion.number == first.number


def take_back_the_last_migration(database: Path) -> None:
    """What the version before had: the tables of its migrations, and no others."""
    last = sorted(path.name for path in MIGRATIONS.glob("*.sql"))[-1]
    assert last == "009_asked.sql"
    columns = "SELECT table_name, column_name, data_type FROM duckdb_columns() ORDER BY ALL"
    with duckdb.connect(":memory:") as then, duckdb.connect(str(database)) as now:
        then.execute("CREATE TABLE schema_migrations (name TEXT PRIMARY KEY)")
        for path in sorted(MIGRATIONS.glob("*.sql"))[:-1]:
            then.execute(path.read_text())
        for table in ("traffic_past", "answer_shapes", "imported"):
            now.execute(f"DROP TABLE {table}")
        now.execute("DROP INDEX samples_by_status")
        now.execute("ALTER TABLE samples DROP COLUMN asked")
        now.execute("CREATE INDEX samples_by_status ON samples (status)")
        now.execute("DELETE FROM schema_migrations WHERE name = ?", [last])
        assert now.execute(columns).fetchall() == then.execute(columns).fetchall()
