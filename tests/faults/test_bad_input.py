"""What a person meets when something is wrong: one clear message and a named exit code."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import httpx2
import pytest

from benchmarks.running import Running, running_service, scripted_teacher
from pipelines.errors import ExitCode
from pipelines.records.native import SCHEMA, NativeRecord, encode_native
from pipelines.types import Message
from service.settings import load_settings
from service.topics.opening import open_writer

PORTS = "[gateway]\nport = 0\n[learner]\nport = 0\n"
TASK = '[tasks.support]\nmodels = ["support"]\nlabels = ["yes", "no"]\n'


def flywheel(folder: Path, settings: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    config = folder / "bad.toml"
    config.write_text(f'data_dir = "{folder / "data"}"\n{settings}')
    return subprocess.run(
        [sys.executable, "-m", "service", "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={key: value for key, value in os.environ.items() if not key.startswith("FLYWHEEL_")},
        check=False,
    )


def said(result: "subprocess.CompletedProcess[str]") -> str:
    """The one message for people; there is never a traceback."""
    assert "Traceback" not in result.stderr, result.stderr[-3000:]
    lines = result.stderr.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("flywheel: "))
    return "\n".join(lines[at:])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("verb", ["learner", "gateway", "run"])
def test_a_port_in_use_is_named_with_the_setting(
    tmp_path: Path, taken_port: int, verb: str
) -> None:
    result = flywheel(
        tmp_path, f"[gateway]\nport = {taken_port}\n[learner]\nport = {taken_port}\n{TASK}", verb
    )

    assert result.returncode == ExitCode.PORT_IN_USE
    assert str(taken_port) in said(result)
    assert ".port" in said(result)


def test_an_unknown_setting_is_refused_by_name(tmp_path: Path) -> None:
    result = flywheel(tmp_path, "[teacher]\nmodle = 'x'\n", "learner")

    assert result.returncode == ExitCode.SETTINGS
    assert "teacher.modle" in said(result)


def test_a_wrong_label_set_is_refused(tmp_path: Path) -> None:
    result = flywheel(
        tmp_path, '[tasks.support]\nmodels = ["m"]\nlabels = ["Yes", "yes"]\n', "learner"
    )

    assert result.returncode == ExitCode.SETTINGS
    assert "tasks.support.labels" in said(result)


def test_a_missing_broker_says_where_it_was_sought(tmp_path: Path) -> None:
    settings = f'[kafka]\nbootstrap_servers = "127.0.0.1:9"\n{PORTS}{TASK}'
    result = flywheel(tmp_path, settings, "learner")

    assert result.returncode == ExitCode.BROKER_UNAVAILABLE
    assert "127.0.0.1:9" in said(result)


def test_a_corrupt_database_is_left_alone(tmp_path: Path) -> None:
    content = b"this is no database"
    (tmp_path / "data").mkdir()
    database = tmp_path / "data" / "flywheel.duckdb"
    database.write_bytes(content)

    result = flywheel(tmp_path, PORTS + TASK, "learner")

    assert result.returncode == ExitCode.DATA_DAMAGED
    assert "not a valid DuckDB" in said(result)
    assert database.read_bytes() == content


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "flywheel.duckdb"
    with duckdb.connect(str(path)) as foreign:
        foreign.execute("CREATE TABLE theirs AS SELECT 42 AS answer")

    result = flywheel(tmp_path, PORTS + TASK, "learner")

    assert result.returncode == ExitCode.DATA_DAMAGED
    assert "another program" in said(result)
    with duckdb.connect(str(path)) as foreign:
        assert foreign.execute("SELECT answer FROM theirs").fetchone() == (42,)


def test_a_damaged_ledger_stops_before_anything_is_bought(tmp_path: Path) -> None:
    ledger = tmp_path / "data" / "ledger"
    ledger.mkdir(parents=True)
    (ledger / "ledger.jsonl").write_text('00000000 {"key":"k"}\n')

    result = flywheel(tmp_path, PORTS + TASK, "learner")

    assert result.returncode == ExitCode.DATA_DAMAGED
    assert "checksum" in said(result)


def test_verbs_without_a_learner_say_so(tmp_path: Path) -> None:
    result = flywheel(tmp_path, "[learner]\nport = 9\n" + TASK, "status")

    assert result.returncode == ExitCode.NOT_RUNNING
    assert "start the learner" in said(result)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with scripted_teacher("--api-key=right") as teacher:
        settings = f"""{PORTS}{TASK}
[teacher]
base_url = "{teacher}"
model = "scripted-teacher"
api_key = "wrong"
terms = "scripted"
terms_allow_training = true
[schedule]
relabel = "every 500ms"
watch = "every 500ms"
[sampling]
held_out_rate = 1.0
"""
        with running_service(tmp_path, settings) as service:
            yield service


def test_a_second_learner_on_a_data_folder_is_refused(running: Running, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    result = flywheel(other, PORTS + TASK, "--data-dir", str(running.data), "learner")

    assert result.returncode == ExitCode.DATA_LOCKED
    assert str(running.pid("learner")) in said(result)


def test_a_refused_teacher_key_is_told_and_costs_nothing(running: Running) -> None:
    """The job fails with a sentence; the event waits, and the learner lives."""
    writer = open_writer(load_settings(running.config))
    for index in range(20):
        message = (Message("user", f"is number {index} all right, or what do you think of it?"),)
        record = NativeRecord(
            schema=SCHEMA, event_id=f"e{index}", model="support", messages=message
        )
        writer.send(encode_native(record))
    writer.flush(10)
    writer.close()

    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        jobs = {job["job"]: job for job in running.client.get("status")["jobs"]}
        ticks = running.client.get("ticks", job="relabel", limit=50)
        failed = [tick for tick in ticks if tick["outcome"] == "failed"]
        figures = running.client.get("status")["tasks"][0]["figures"]
        if failed and figures["pending_samples"] == 20:
            break
        time.sleep(0.3)
    assert "teacher.api_key" in failed[0]["detail"]
    assert jobs["relabel"] is not None
    assert httpx2.get(f"{running.learner}/readyz").status_code == 200
    assert figures["labels_bought"] == 0
    assert figures["pending_samples"] == 20
