"""The doctor finds what is wrong, says what to do, and touches nothing."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
from lived_in import TASK as LIVED_TASK
from lived_in import LivedIn, run_flywheel
from operating import TASK, open_desk
from pydantic import SecretStr

from benchmarks.running import running_service
from pipelines.errors import ExitCode, NotRunning
from service.care.doctor import Finding, examine
from service.settings import Settings, load_settings
from service.topics.embedded import EmbeddedTopicWriter
from service.topics.topic_file import prune
from storage.database import Database
from storage.ledger import Amounts, Ledger
from storage.traffic import store_offsets

NOW = datetime.now(UTC)
SIDE_FILES = (".sqlite-shm", ".sqlite-wal")  # a reader of SQLite makes them


def nobody(*path: str, **query: object) -> Any:
    raise NotRunning("no learner answers")


def found(settings: Settings, part: str) -> list[Finding]:
    return [one for one in examine(settings, nobody) if one.part == part]


def test_what_no_loop_can_learn_from_is_repeated(tmp_path: Path) -> None:
    need = {"kind": "requests_past", "sentence": "9 of 10 went past", "text": "See the how-to."}
    task: dict[str, Any] = {"task": TASK, "past": {"stored": 40}}
    status: dict[str, Any] = {"needs": [need, {"kind": "approval"}], "tasks": [task]}

    def told(*path: str, **query: object) -> Any:
        return status

    def sentences() -> list[tuple[str, str]]:
        settings = Settings(data_dir=tmp_path)
        return [(f.level, f.sentence) for f in examine(settings, told) if f.part == "traffic"]

    past, stored = sentences()
    assert past == ("warning", "9 of 10 went past")
    assert stored[1].startswith("40 requests for support in the last day wanted their answers")
    task["past"] = {"stored": 40, "state": 1}
    status["needs"] = []
    assert sentences() == [("ok", "requests reach their students, and paid answers are labels")]


def bad(settings: Settings, part: str) -> list[str]:
    return [one.sentence for one in found(settings, part) if one.level == "problem"]


@contextmanager
def teacher(
    status: int, body: object = None, *, off: timedelta = timedelta()
) -> Iterator[tuple[str, list[str]]]:
    """A server whose clock may be wrong; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"GET {self.path}")
            content = json.dumps(body or {}).encode()
            self.send_response_only(status)
            self.send_header("date", format_datetime(datetime.now(UTC) + off, usegmt=True))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            asked.append(f"POST {self.path}")

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a folder with a student, a decision, a ledger and a topic; nobody runs."""
    with open_desk(tmp_path / "data") as desk:
        desk.candidate()
        desk.operations.reject(TASK, 1, reason="no", operator="ann")
        with closing(EmbeddedTopicWriter(desk.folder / "topic.sqlite")) as writer:
            for index in range(10):
                writer.send(b"%d" % index)
            writer.flush(10)
        with desk.database.transaction() as tx:
            store_offsets(tx, "flywheel.prompts", "same", {0: 4}, NOW)
        ledger = Ledger(desk.folder / "ledger")
        for key in "ab":
            ledger.intend(key, event_id=key, request=b"q", reserve=Amounts(tokens=1), now=NOW)
            ledger.receive(key, reply=b"answer", spent=Amounts(tokens=1), now=NOW)
        ledger.close()
        return desk.settings


def with_teacher(settings: Settings, url: str) -> Settings:
    about = {"base_url": url, "model": "large-1", "api_key": SecretStr("ours")}
    teacher = settings.teacher.model_copy(update=about)
    return settings.model_copy(update={"teacher": teacher})


def test_a_sound_folder_has_no_problem_and_nothing_of_it_changes(settings: Settings) -> None:
    def content() -> dict[str, bytes]:
        files = [path for path in settings.data_dir.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files if path.suffix not in SIDE_FILES}

    before = content()
    with teacher(200, {"data": [{"id": "large-1"}]}) as (url, asked):
        findings = list(examine(with_teacher(settings, url), nobody))
    assert [one for one in findings if one.level == "problem"] == []
    parts = {one.part for one in findings}
    assert parts >= {"folders", "ports", "database", "decisions", "ledger", "artifacts", "topic"}
    assert asked == ["GET /v1/models"], "nothing that costs anything"
    assert content() == before
    assert all(one.todo for one in findings if one.level != "ok")


def test_logging_is_left_as_it_was(settings: Settings) -> None:
    before = structlog.get_config()
    assert list(examine(settings, nobody))
    assert structlog.get_config() == before


def flip_decision(data: Path) -> None:
    file = data / "decisions.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"no"', b'"yes"'))


def cut_log(data: Path) -> None:
    """As a database whose log lost its end: fewer commits than were acknowledged."""
    file = data / "flywheel.commits"
    file.write_text(str(int(file.read_text()) + 3))


def spoil_database(data: Path) -> None:
    (data / "flywheel.duckdb").write_bytes(b"rubbish" * 2000)


def change_ledger(data: Path) -> None:
    file = data / "ledger" / "ledger.jsonl"
    file.write_bytes(file.read_bytes().replace(b"intent", b"iNtent", 1))


def lose_replies(data: Path) -> None:
    (data / "ledger" / "bodies.sqlite").unlink()
    Ledger(data / "ledger").close()


def change_artifact(data: Path) -> None:
    next((data / "artifacts" / "student").rglob("student.json")).write_text("{}")


def pass_by(data: Path) -> None:
    prune(data / "topic.sqlite", before_offset=7)


def recreate(data: Path) -> None:
    (data / "topic.sqlite").unlink()
    EmbeddedTopicWriter(data / "topic.sqlite").close()


def unsign(data: Path) -> None:
    (data / "secrets" / "internal.key").write_text("another")


def half_restore(data: Path) -> None:
    (data / ".restoring").touch()


def set_clock_back(data: Path) -> None:
    later = time.time() + 3600
    os.utime(data / "flywheel.commits", (later, later))


@pytest.mark.parametrize(
    ("harm", "part", "sentence", "todo"),
    [
        (flip_decision, "decisions", "was changed", "flywheel restore"),
        (cut_log, "database", "were acknowledged", "flywheel rebuild"),
        (spoil_database, "database", "cannot be opened", "flywheel rebuild"),
        (change_ledger, "ledger", "line 1", "flywheel restore"),
        (lose_replies, "ledger", "2 of 2 paid answers", "flywheel restore"),
        (change_artifact, "artifacts", "not what was published", "flywheel restore"),
        (pass_by, "topic", "retention has removed 3 records", "gap"),
        (recreate, "topic", "read to 4, and ends at 0", "--reset-offsets"),
        (unsign, "artifacts", "not signed", "publishes anew"),
        (half_restore, "folders", "did not finish", "flywheel restore"),
        (set_clock_back, "clock", "still to come", "NTP"),
    ],
)
def test_each_harm_is_found_with_what_to_do(
    harm: Callable[[Path], None], part: str, sentence: str, todo: str, settings: Settings
) -> None:
    assert bad(settings, part) == []
    harm(settings.data_dir)
    problems = [one for one in found(settings, part) if one.level == "problem"]
    assert [one for one in problems if sentence in one.sentence and todo in one.todo], problems


@pytest.mark.parametrize(
    ("status", "body", "level", "sentence"),
    [
        (200, {"data": [{"id": "large-1"}]}, "ok", "accepts our key and lists large-1"),
        (200, {"data": [{"id": "other"}]}, "problem", "lists no model large-1"),
        (401, None, "problem", "does not accept our key"),
        (404, None, "warning", "no listing of models"),
    ],
)
def test_the_teacher_is_judged_by_its_listing_of_models(
    status: int, body: object, level: str, sentence: str, settings: Settings
) -> None:
    with teacher(status, body) as (url, _):
        (one,) = found(with_teacher(settings, url), "teacher")
    assert one.level == level
    assert sentence in one.sentence
    assert "costs nothing" in one.sentence


@pytest.mark.parametrize(("off", "level"), [(0, "ok"), (120, "warning"), (-3600, "problem")])
def test_a_clock_that_differs_from_the_teachers_is_found(
    off: int, level: str, settings: Settings
) -> None:
    with teacher(200, off=timedelta(seconds=off)) as (url, _):
        levels = [
            one.level
            for one in found(with_teacher(settings, url), "clock")
            if "differ" in one.sentence
        ]
    assert levels == [level]


def test_a_port_of_another_program_is_named(settings: Settings) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        gateway = settings.gateway.model_copy(update={"port": other.getsockname()[1]})
        problems = bad(settings.model_copy(update={"gateway": gateway}), "ports")
    assert len(problems) == 1
    assert "gateway.port" in problems[0]


def test_too_little_space_is_a_problem(settings: Settings) -> None:
    ingest = settings.ingest.model_copy(update={"min_free_disk_mb": 10**9})
    assert "reading is paused" in bad(settings.model_copy(update={"ingest": ingest}), "folders")[0]


def test_a_newer_database_is_not_to_be_rebuilt(settings: Settings) -> None:
    database = Database(settings.data_dir / "flywheel.duckdb")
    with database.transaction() as tx:
        tx.execute("INSERT INTO schema_migrations VALUES ('999_future.sql')")
    database.close()
    (one,) = [one for one in found(settings, "database") if one.level == "problem"]
    assert "newer flywheel" in one.sentence
    assert "install" in one.todo


@pytest.mark.kafka
def test_a_broker_is_asked_for_topic_codec_and_what_retention_left(
    kafka_broker: Any, settings: Settings
) -> None:
    topic = f"doctor-{uuid4().hex[:8]}"
    kafka = settings.kafka.model_copy(
        update={
            "bootstrap_servers": kafka_broker.bootstrap_servers,
            "topic": topic,
            "create_topic": False,
        }
    )
    asked = settings.model_copy(update={"kafka": kafka})
    assert bad(asked, "topic") == [f"there is no topic {topic}"]
    kafka_broker.create_topic(topic, partitions=2)
    (one,) = found(asked, "topic")
    assert (one.level, "2 partitions" in one.sentence) == ("ok", True)
    database = Database(settings.data_dir / "flywheel.duckdb")
    with database.transaction() as tx:
        store_offsets(tx, topic, "same", {0: 5}, NOW)
    database.close()
    assert "was read to 5, and ends at 0" in bad(asked, "topic")[0]
    nowhere = kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9"})
    assert (
        "No Kafka broker answers" in bad(settings.model_copy(update={"kafka": nowhere}), "topic")[0]
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_works_with_the_learner_running_and_not(lived_in: LivedIn, tmp_path: Path) -> None:
    data, config = lived_in.copy(tmp_path), lived_in.config(tmp_path)
    said = run_flywheel(config, "doctor", "--all")
    assert "answers its golden prompts as evaluated" in said
    assert "no learner runs" in said
    with running_service(tmp_path, lived_in.settings):
        said = run_flywheel(config, "doctor", "--all")
        assert "the learner holds it, and reads from it" in said
        assert "the gateway (process" in said
        assert "0 records wait to be read" in said
    live = json.loads((data / "live.json").read_text())["live"]
    student = json.loads(live)["tasks"][LIVED_TASK]["champion"]["student"]
    weights = data / "artifacts" / "student" / student / "head.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = run_flywheel(config, "doctor", "--json", code=ExitCode.PROBLEMS_FOUND)
    problems = [one for one in json.loads(said) if one["level"] == "problem"]
    assert any("cannot be served" in one["sentence"] for one in problems)
    assert any("roll back" in one["todo"] for one in problems)
    shutil.rmtree(data)
    said = run_flywheel(config, "doctor", code=ExitCode.PROBLEMS_FOUND)
    assert "there is no data folder" in said
    assert load_settings(config).data_dir == data
