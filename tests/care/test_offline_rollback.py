"""Rolling back while the learner is dead: served at once, recorded once, by whoever comes back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lived_in import TASK as LIVED_TASK
from lived_in import LivedIn, run_flywheel, serving, wait_for
from operating import LABELS, TASK, Clock, open_desk

from benchmarks.running import running_service
from pipelines.errors import ArtifactDamaged, DataDamaged, DataLocked, Refused
from service.care import rollback
from service.care.rollback import roll_back_offline
from service.host.process import lock_data_folder
from service.keys import open_keys
from service.settings import Settings
from storage.decisions import read_file, verify_chain
from storage.live import read_live


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two approved versions, the second the champion; nobody runs."""
    with open_desk(tmp_path / "data") as desk:
        for _ in range(2):
            desk.approved()
        desk.candidate()
    return tmp_path / "data"


@pytest.fixture
def settings(folder: Path) -> Settings:
    tasks = {TASK: {"models": ["gpt-support"], "labels": list(LABELS)}}
    return Settings(data_dir=folder, tasks=tasks)  # type: ignore[arg-type]


def champion(folder: Path) -> int:
    live = read_live(folder / "live.json", open_keys(folder).live)
    found = live.tasks[TASK].champion
    assert found is not None
    return found.number


def back(settings: Settings, to: int | None = None, **options: str) -> str:
    about = {"reason": "complaints", "operator": "ann", **options}
    return roll_back_offline(settings, None, to, now=Clock(), **about).name


@pytest.mark.parametrize("to", [None, 1])
def test_it_is_served_at_once_and_recorded_when_the_learner_is_back(
    to: int | None, folder: Path, settings: Settings
) -> None:
    before = read_live(folder / "live.json", open_keys(folder).live)
    assert back(settings, to) == "support-v1"
    assert champion(folder) == 1
    live = read_live(folder / "live.json", open_keys(folder).live)
    assert live.serial > before.serial
    assert live.tasks[TASK].previous == before.tasks[TASK].champion
    published = (folder / "live.json").read_bytes()

    with open_desk(folder) as desk:  # the learner starts
        link = desk.operations.versions(TASK)
        assert [one.state for one in link if one.number == 1] == ["champion"]
        with desk.database.snapshot() as tx:
            query = "SELECT action, operator, reason FROM decisions ORDER BY sequence"
            recorded = tx.execute(query).fetchall()
        assert recorded[2:] == [("rollback", "ann", "complaints")]
        assert desk.live_path.read_bytes() == published, "as the learner would publish it"
    verify_chain(read_file(folder / "decisions.jsonl"))
    with open_desk(folder) as desk, desk.database.snapshot() as tx:
        assert tx.execute("SELECT count(*) FROM decisions").fetchall() == [(3,)], "once"


def test_it_works_although_the_database_is_destroyed(folder: Path, settings: Settings) -> None:
    (folder / "flywheel.duckdb").write_bytes(b"rubbish" * 1000)
    back(settings)
    assert champion(folder) == 1


def test_a_death_before_live_json_is_put_right_by_the_next_start(
    folder: Path, settings: Settings
) -> None:
    live = (folder / "live.json").read_bytes()
    back(settings)
    (folder / "live.json").write_bytes(live)  # as if it had not been reached
    with open_desk(folder) as desk:
        assert desk.live_path.read_bytes() != live
    assert champion(folder) == 1


def flip(folder: Path) -> None:
    for path in (folder / "artifacts" / "student").rglob("student.json"):
        if '"number": 1}' in path.read_text():
            path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("to", "harm", "error", "sentence"),
    [
        (3, None, Refused, "never approved"),
        (9, None, Refused, "never approved"),
        (2, None, Refused, "champion already"),
        (1, flip, ArtifactDamaged, "not what was published"),
        (None, flip, ArtifactDamaged, "not what was published"),
    ],
)
def test_only_what_was_approved_and_verifies_can_serve(
    to: int | None,
    harm: Callable[[Path], None] | None,
    error: type[Exception],
    sentence: str,
    folder: Path,
    settings: Settings,
) -> None:
    if harm:
        harm(folder)
    files = [folder / "live.json", folder / "decisions.jsonl"]
    before = [path.read_bytes() for path in files]
    with pytest.raises(error, match=sentence):
        back(settings, to)
    assert [path.read_bytes() for path in files] == before


def test_nothing_is_appended_to_a_broken_chain(folder: Path, settings: Settings) -> None:
    file = folder / "decisions.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"action":"approve"', b'"action":"reject"', 1))
    before = file.read_bytes()
    with pytest.raises(DataDamaged, match="decision 1 was changed"):
        back(settings)
    assert file.read_bytes() == before
    assert champion(folder) == 2


def test_it_wants_a_reason(settings: Settings) -> None:
    with pytest.raises(Refused, match="say why"):
        back(settings, reason="  ")


def test_a_learner_that_hangs_is_named_and_nothing_happens(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "LOCK_SECONDS", 0.3)
    with lock_data_folder(folder), pytest.raises(DataLocked, match="end that process"):
        back(settings)
    assert champion(folder) == 2


def test_rollbacks_and_starts_at_the_same_time_lose_and_double_nothing(
    folder: Path, settings: Settings
) -> None:
    """Two operators at once, and a learner that starts: one after the other, by the lock."""
    script = (
        "import sys; from pathlib import Path; from service.settings import Settings\n"
        "from service.care.rollback import roll_back_offline\n"
        f"tasks = {{'{TASK}': {{'models': ['m'], 'labels': {list(LABELS)!r}}}}}\n"
        f"settings = Settings(data_dir=Path({str(folder)!r}), tasks=tasks)\n"
        "done = roll_back_offline(settings, None, 1, reason='r', operator=sys.argv[1])\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, name], stderr=subprocess.PIPE, text=True)
        for name in ("ann", "ben", "eve")
    ]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert sorted(code for _, code in ends) == [0, 1, 1]
    assert all("is the champion already" in said for said, code in ends if code)
    with open_desk(folder) as desk, desk.database.snapshot() as tx:
        query = "SELECT count(*) FROM decisions WHERE action = 'rollback'"
        assert tx.execute(query).fetchall() == [(1,)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_gateways_switch_while_the_learner_is_dead(lived_in: LivedIn, tmp_path: Path) -> None:
    lived_in.copy(tmp_path)
    config = lived_in.config(tmp_path)
    with running_service(tmp_path, lived_in.settings) as running:
        wait_for("the champion", lambda: f"{LIVED_TASK}-v2" in serving(running))
        running.process.send_signal(signal.SIGSTOP)  # the supervisor: nobody starts another
        os.kill(running.pid("learner"), signal.SIGKILL)
        said = run_flywheel(config, "rollback", "--yes", "--reason", "worse")
        assert "No learner runs" in said
        wait_for("the switch", lambda: f"{LIVED_TASK}-v1" in serving(running), seconds=60)
        running.process.send_signal(signal.SIGCONT)
        versions = wait_for(
            "the learner", lambda: running.client.get("tasks", LIVED_TASK, "versions")
        )
        states = {one["number"]: one["state"] for one in versions}
        assert states == {1: "champion", 2: "approved"}
    lines = (tmp_path / "data" / "decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["approve", "approve", "rollback"]


def test_a_desk_that_was_never_decided_on_has_nothing_to_roll_back(tmp_path: Path) -> None:
    with open_desk(tmp_path / "data") as desk:
        desk.train()
        settings = desk.settings
    (tmp_path / "data" / "decisions.jsonl").write_bytes(b"")
    with pytest.raises(Refused, match="nothing was ever approved"):
        back(settings)
