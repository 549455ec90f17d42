"""Backups: one consistent state taken while everything runs, and a folder that goes on from it."""

import json
import os
import shutil
import stat
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from learner_rig import asked_again
from lived_in import TASK, LivedIn, events, pending, rows, run_flywheel, serving, wait_for
from operating import Desk, open_desk

from benchmarks.running import running_service
from pipelines.errors import DataDamaged, DiskFull, Refused
from service.care.backup import write_backup
from service.care.restore import check_backup, restore
from service.host.process import lock_data_folder
from service.settings import Settings
from storage.artifacts import Artifacts
from storage.database import Database
from storage.decisions import read_file, reconcile
from storage.dump import Frozen, freeze
from storage.folder import DataFolder
from storage.ledger import Amounts, Ledger


def quietly(text: str) -> None: ...


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_backup_taken_while_running_is_where_the_loop_goes_on(
    lived_in: LivedIn, tmp_path: Path
) -> None:
    config = lived_in.config(tmp_path)
    said = run_flywheel(config, "restore", str(lived_in.backup))
    assert "verified" in said
    data = tmp_path / "data"
    champion = lived_in.at_backup["tasks"][0]["champion"]["name"]
    # The topic outlives the disk, as a broker's does: it holds what came after the backup.
    for file in lived_in.data.glob("topic.sqlite*"):  # a process that was killed left its log
        shutil.copyfile(file, data / file.name)
    offsets = "SELECT next_offset FROM offsets"
    (then,), (later,) = (
        rows(data / "flywheel.duckdb", offsets),
        rows(lived_in.data / "flywheel.duckdb", offsets),
    )
    assert then < later
    labelled = rows(data / "flywheel.duckdb", "SELECT event_id, label FROM labels")
    assert labelled

    billed, again = lived_in.bills(), asked_again(data / "ledger")
    with running_service(tmp_path, lived_in.settings) as running:
        wait_for("the champion of then", lambda: serving(running) == champion)
        total = rows(lived_in.data / "flywheel.duckdb", "SELECT sum(events) FROM traffic")[0][0]
        wait_for("every event", lambda: events(running) == total)
        wait_for("every label", lambda: not pending(running))
        versions = running.client.get("tasks", TASK, "versions")
        assert [one["name"] for one in versions if one["state"] == "champion"] == [champion]
    new = Counter(lived_in.bills()[len(billed) :]) - (asked_again(data / "ledger") - again)
    bought_again = set(new) & set(billed[: lived_in.billed_at_backup])
    assert not bought_again, "what was received before the backup is known"
    assert rows(data / "flywheel.duckdb", "SELECT sum(events) FROM traffic") == [(total,)]
    after = dict(rows(data / "flywheel.duckdb", "SELECT event_id, label FROM labels"))
    assert dict(labelled).items() <= after.items()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path / "data") as opened:
        version, report = opened.candidate()
        opened.operations.approve("support", version.number, report=report, operator="ann")
        opened.candidate()
        ledger = Ledger(opened.folder / "ledger")
        for key, answered in (("a", True), ("b", False)):
            now = opened.clock()
            ledger.intend(key, event_id=key, request=b"q", reserve=Amounts(tokens=9), now=now)
            if answered:
                ledger.receive(key, reply=b"answer", spent=Amounts(tokens=5), now=now)
        ledger.close()
        yield opened


def back_up(desk: Desk, target: Path, *, secrets: bool = True) -> Path:
    frozen = freeze(desk.database, desk.settings.folder, 0)
    write_backup(desk.settings, target, frozen, secrets=secrets, say=quietly)
    return target


def elsewhere(desk: Desk, folder: Path) -> Settings:
    return desk.settings.model_copy(update={"data_dir": folder})


@pytest.mark.parametrize("name", ["backup.tar", "backup"])
def test_what_is_restored_is_what_was_saved(name: str, desk: Desk, tmp_path: Path) -> None:
    target = back_up(desk, tmp_path / name)
    settings = elsewhere(desk, tmp_path / "restored")
    found = restore(settings, target, quietly)

    assert found.decisions == 1
    assert found.calls == 2
    assert found.unfinished_calls == 1
    assert any("unknown list" in note for note in found.notes)
    assert read_file(settings.data_dir / "decisions.jsonl") == read_file(
        desk.folder / "decisions.jsonl"
    )
    assert Artifacts(settings.data_dir / "artifacts").digests("student") == desk.artifacts.digests(
        "student"
    )
    ledger = Ledger(settings.data_dir / "ledger")
    assert ledger.reply("a") == b"answer"
    ledger.close()
    database = Database(settings.data_dir / "flywheel.duckdb")
    assert reconcile(database, settings.data_dir / "decisions.jsonl") == []
    for table in ("students", "evaluations", "training_runs", "datasets", "decisions"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        with database.snapshot() as new, desk.database.snapshot() as old:
            assert new.execute(query).fetchall() == old.execute(query).fetchall()
    database.close()


def test_only_its_owner_reads_a_backup(desk: Desk, tmp_path: Path) -> None:
    for name in ("backup.tar", "backup"):
        target = back_up(desk, tmp_path / name)
        paths = [target, *target.rglob("*")] if target.is_dir() else [target]
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


def test_a_backup_never_replaces_anything(desk: Desk, tmp_path: Path) -> None:
    target = tmp_path / "backup.tar"
    target.write_bytes(b"somebody's")
    with pytest.raises(Refused, match="ever written over"):
        back_up(desk, target)
    assert target.read_bytes() == b"somebody's"
    assert not list(tmp_path.glob(".*partial")), "nothing half done stays"
    assert not list(DataFolder(desk.folder).frozen.glob("*"))


def test_gateways_follow_a_restored_state_although_it_is_older(desk: Desk, tmp_path: Path) -> None:
    """A serial lower than one that was seen would be refused as a forgery."""
    target = back_up(desk, tmp_path / "backup.tar")
    waiting = desk.operations.waiting()[0]
    assert waiting.report is not None
    desk.operations.approve("support", waiting.number, report=waiting.report, operator="ann")
    settings = elsewhere(desk, tmp_path / "restored")
    serial, approved = desk.live().serial, time.time()
    while time.time() < approved + 2:  # serials go by the clock: nobody restores within a second
        time.sleep(0.1)
    restore(settings, target, quietly)
    shutil.copyfile(settings.data_dir / "live.json", desk.live_path)
    assert desk.live().serial > serial
    assert desk.live().tasks["support"].champion.number == 1  # type: ignore[union-attr]


def cut(target: Path) -> None:
    os.truncate(target, target.stat().st_size // 2)


def flip(target: Path) -> None:
    content = bytearray(target.read_bytes())
    at = content.index(b"PAR1") + 40
    content[at] ^= 1
    target.write_bytes(content)


def add_a_file(target: Path) -> None:
    with tarfile.open(target, "a") as tar:
        tar.add(__file__, "artifacts/student/" + "0" * 64 + "/student.json")


@pytest.mark.parametrize("harm", [cut, flip, add_a_file])
def test_a_changed_backup_is_refused_before_anything_is_written(
    harm: Callable[[Path], None], desk: Desk, tmp_path: Path
) -> None:
    target = back_up(desk, tmp_path / "backup.tar")
    check_backup(target, quietly)
    harm(target)
    with pytest.raises(DataDamaged):
        restore(elsewhere(desk, tmp_path / "restored"), target, quietly)
    assert not (tmp_path / "restored").exists()


def test_a_folder_that_is_in_use_is_not_restored_into(desk: Desk, tmp_path: Path) -> None:
    target = back_up(desk, tmp_path / "backup.tar")
    before = sorted(path.name for path in desk.folder.iterdir())
    with pytest.raises(Refused, match="not empty"):
        restore(desk.settings, target, quietly)
    assert sorted(path.name for path in desk.folder.iterdir()) == before


def test_a_restore_that_was_cut_short_starts_no_learner_and_can_be_repeated(
    desk: Desk, tmp_path: Path
) -> None:
    target = back_up(desk, tmp_path / "backup.tar")
    settings = elsewhere(desk, tmp_path / "restored")

    def die(text: str) -> None:
        if "verified" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(settings, target, die)
    assert (settings.folder.restoring).exists()
    with pytest.raises(DataDamaged, match="flywheel restore"):
        lock_data_folder(settings.data_dir)
    assert restore(settings, target, quietly).decisions == 1
    lock_data_folder(settings.data_dir).close()


def test_without_secrets_it_says_what_that_means(desk: Desk, tmp_path: Path) -> None:
    target = back_up(desk, tmp_path / "backup", secrets=False)
    assert not (target / "secrets").exists()
    settings = elsewhere(desk, tmp_path / "restored")
    found = restore(settings, target, quietly)
    assert any("new internal key" in note for note in found.notes)
    assert not (settings.data_dir / "live.json").exists(), "signed with a key that is gone"


def test_the_operators_token_is_in_no_backup(desk: Desk, tmp_path: Path) -> None:
    (desk.folder / "secrets" / "operator.token").write_text("the operator's own")
    target = back_up(desk, tmp_path / "backup")
    held = [path for path in target.rglob("*") if path.is_file()]
    assert not [path for path in held if b"the operator's own" in path.read_bytes()]
    assert (target / "secrets" / "internal.key").is_file()


def test_a_damaged_artifact_is_named_and_left_out(desk: Desk, tmp_path: Path) -> None:
    digest = desk.artifacts.digests("student")[0]
    (desk.artifacts.path("student", digest) / "student.json").write_text("changed")
    target = back_up(desk, tmp_path / "backup")
    about = json.loads((target / "backup.json").read_text())["about"]
    assert [digest[:12] in one for one in about["left_out"]] == [True]
    assert not (target / "artifacts" / "student" / digest).exists()


def test_decisions_and_tables_are_of_one_moment(desk: Desk) -> None:
    """Somebody decides without pause; in no backup is one of the two ahead."""
    stop, errors = Event(), []

    def decide() -> None:
        try:
            while not stop.is_set():
                version = desk.train()
                desk.operations.reject("support", version.number, reason="no", operator="ann")
        except Exception as error:
            errors.append(error)

    thread = Thread(target=decide)
    thread.start()
    try:
        frozen: list[Frozen] = [freeze(desk.database, desk.settings.folder, 0) for _ in range(6)]
    finally:
        stop.set()
        thread.join()
    assert not errors
    lines = (desk.folder / "decisions.jsonl").read_bytes()
    for one in frozen:
        assert lines[: one.decisions_bytes].count(b"\n") == one.dump.rows["decisions"]
    assert frozen[-1].dump.rows["decisions"] > frozen[0].dump.rows["decisions"]


def test_a_copy_of_the_database_leaves_what_ingest_needs(desk: Desk) -> None:
    with pytest.raises(DiskFull, match="must stay free"):
        freeze(desk.database, desk.settings.folder, min_free_mb=10**9)


def test_copies_that_killed_backups_left_are_removed_and_those_in_use_stay(desk: Desk) -> None:
    folder = desk.settings.folder
    left, in_use = (Path(freeze(desk.database, folder, 0).folder) for _ in range(2))
    os.utime(left, (time.time() - 2 * 86_400,) * 2)
    freeze(desk.database, folder, 0)
    assert (left.exists(), in_use.exists()) == (False, True)
