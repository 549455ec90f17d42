"""Full and read-only disks: a clear message, nothing lost, and on with it when there is space."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread

import duckdb
import httpx2
import pytest
from core_samples import TASK as CORE_TASK
from ingest_rig import Producer, make_ingest, record
from learner_rig import Rig, open_rig
from lived_in import wait_for
from operating import TASK, Clock, Desk, open_desk

from benchmarks.running import running_service
from pipelines.errors import DataDamaged, DiskFull
from service.care.backup import write_backup
from service.care.rebuild.run import rebuild
from service.care.restore import restore
from service.care.rollback import roll_back_offline
from service.keys import open_keys
from storage.artifacts import Artifacts
from storage.database import Database
from storage.decisions import read_file, verify_chain
from storage.dump import freeze
from storage.ledger import Amounts, Ledger
from storage.live import read_live

MEGABYTE = 1 << 20


def quietly(text: str) -> None: ...


class Disk:
    """A small disk of its own, which can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (MEGABYTE, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=28m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk needs the right to mount one: run as root on Linux")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def desk(disk: Disk) -> Iterator[Desk]:
    with open_desk(disk.folder / "data") as opened:
        yield opened


def wear_out(desk: Desk) -> None:
    """Commit until the database finds no space: its log has some left when the disk is full."""

    def toggle() -> None:
        for _ in range(10_000):
            desk.operations.pause("train", operator="ann")
            desk.operations.resume("train", operator="ann")

    with pytest.raises(DiskFull, match="no space left for the database"):
        toggle()


def approve(desk: Desk, number: int, report: str) -> None:
    desk.operations.approve(TASK, number, report=report, operator="ann")


def failure(desk: Desk, number: int, report: str) -> str:
    """What an approval says of the disk; empty: there was space."""
    try:
        approve(desk, number, report)
    except DiskFull as error:
        return str(error)
    return ""


def test_a_commit_without_space_loses_nothing_that_was_committed(disk: Disk, desk: Desk) -> None:
    version = desk.train()
    for _ in range(5):  # episodes, one after the other on the same database
        disk.fill()
        wear_out(desk)
        with desk.database.snapshot() as tx:
            assert tx.execute("SELECT digest FROM students").fetchall() == [(version.student,)]
        disk.free()
        desk.operations.pause("watch", operator="ann")
        desk.operations.resume("watch", operator="ann")
        desk.database.checkpoint()
    desk.database.close()
    with closing(Database(desk.folder / "flywheel.duckdb")) as again, again.snapshot() as tx:
        assert tx.execute("SELECT digest FROM students").fetchall() == [(version.student,)]


def test_a_checkpoint_without_space_corrupts_nothing(disk: Disk, desk: Desk) -> None:
    """DuckDB is known for it."""
    with desk.database.transaction() as tx:
        tx.execute("CREATE TABLE big AS SELECT range AS x, uuid()::TEXT AS y FROM range(60000)")
    disk.fill()
    with suppress(duckdb.Error):  # it may say so, and may not
        desk.database.checkpoint()
    disk.free()
    desk.database.close()
    with closing(Database(desk.folder / "flywheel.duckdb")) as again:
        with again.snapshot() as tx:
            assert tx.execute("SELECT count(*), count(DISTINCT y) FROM big").fetchall() == [
                (60_000, 60_000)
            ]
        with again.transaction() as tx:
            tx.execute("INSERT INTO big VALUES (1, 'after')")


def test_a_decision_without_space_for_its_line_is_not_made(disk: Disk, desk: Desk) -> None:
    version, report = desk.candidate()
    disk.fill()
    with pytest.raises(DiskFull, match="nothing was decided"):
        approve(desk, version.number, report)
    disk.free()
    assert desk.champion() is None
    approve(desk, version.number, report)
    assert desk.champion() == version.student
    verify_chain(read_file(desk.folder / "decisions.jsonl"))


def test_a_decision_without_space_for_its_commit_is_made_once(disk: Disk, desk: Desk) -> None:
    desk.approved()  # its line leaves space in the file's last page
    version, report = desk.candidate()
    disk.fill()
    wear_out(desk)
    with pytest.raises(DiskFull, match="takes effect by itself"):
        approve(desk, version.number, report)
    disk.free()

    desk.operations.settle()  # as the watch does

    assert desk.champion() == version.student
    champion = desk.live().tasks[TASK].champion
    assert champion is not None
    assert champion.number == 2
    assert [link.action for link in read_file(desk.folder / "decisions.jsonl")] == ["approve"] * 2


def test_a_decision_that_could_not_be_published_is_so_when_there_is_space(
    disk: Disk, desk: Desk
) -> None:
    # Pages for the decision file and for the database, and none for live.json: whether two are
    # that depends on how full their last ones are, which the commits in between change.
    for _ in range(40):
        version, report = desk.candidate()
        before = desk.live().tasks[TASK].champion
        disk.fill()
        ballast = disk.folder / "ballast"
        os.truncate(ballast, ballast.stat().st_size - 8192)
        if "is published by itself" in failure(desk, version.number, report):
            break
        disk.free()
        desk.operations.settle()
    else:
        pytest.fail("a full disk kept something else from being written each time")
    assert desk.live().tasks[TASK].champion == before
    desk.operations.settle()  # still no space: said in the log, nothing else
    disk.free()
    desk.operations.settle()
    champion = desk.live().tasks[TASK].champion
    assert champion is not None
    assert champion.student == version.student


def test_an_artifact_without_space_is_absent(disk: Disk, desk: Desk) -> None:
    scratch = desk.folder / "scratch" / "dataset"
    scratch.mkdir()
    (scratch / "train.jsonl").write_bytes(b"x" * 4096)
    disk.fill()
    with pytest.raises(DiskFull):
        desk.artifacts.publish("dataset", scratch, {"task": TASK})
    assert desk.artifacts.digests("dataset") == []
    disk.free()
    found = desk.artifacts.publish("dataset", scratch, {"task": TASK})
    assert Artifacts(desk.folder / "artifacts").open("dataset", found.digest).digest == found.digest


def test_a_ledger_without_space_refuses_the_call_and_goes_on_later(disk: Disk) -> None:
    clock, big = Clock(), b"q" * 50_000

    def intend(ledger: Ledger, key: str) -> None:
        reserve = Amounts(tokens=1, money=0.5)
        ledger.intend(key, event_id=key, request=big, reserve=reserve, now=clock())

    ledger = Ledger(disk.folder / "ledger")
    intend(ledger, "before")
    ledger.receive("before", reply=b"answer", spent=Amounts(tokens=1, money=0.2), now=clock())
    disk.fill()
    refused = 0
    for index in range(200):
        try:
            intend(ledger, f"full-{index}")
        except DiskFull as error:
            refused += "no teacher call is made" in str(error)
    assert refused > 100
    spent = ledger.spent_on(clock.at).money
    disk.free()
    intend(ledger, "after")
    ledger.close()
    again = Ledger(disk.folder / "ledger")
    again.verify()
    assert again.reply("before") == b"answer"
    assert again.count() == 200 - refused + 2
    assert again.spent_on(clock.at).money == pytest.approx(spent + 0.5)
    again.close()


def test_a_reply_that_finds_no_space_leaves_its_call_open(disk: Disk) -> None:
    """It was paid, and nobody can use it: held as unknown, never sent again by itself."""
    clock = Clock()
    ledger = Ledger(disk.folder / "ledger")
    ledger.intend("k", event_id="e", request=b"q", reserve=Amounts(tokens=1), now=clock())
    disk.fill()
    with pytest.raises(DiskFull):
        ledger.receive("k", reply=b"a" * 3_000_000, spent=Amounts(tokens=1), now=clock())
    disk.free()
    ledger.close()
    again = Ledger(disk.folder / "ledger")
    assert [call.key for call in again.unfinished()] == ["k"]
    again.close()


def test_a_backup_without_space_leaves_nothing(disk: Disk, tmp_path: Path) -> None:
    with open_desk(tmp_path / "data") as desk:
        desk.approved()
        target = disk.folder / "backup.tar"
        frozen = freeze(desk.database, desk.settings.folder, desk.settings.ingest.min_free_disk_mb)
        disk.fill()
        with pytest.raises(DiskFull, match="no space left"):
            write_backup(desk.settings, target, frozen, secrets=True, say=quietly)
        assert sorted(path.name for path in disk.folder.iterdir()) == ["ballast"]
        assert not list((desk.folder / "scratch").glob("backup-*"))
        disk.free()
        frozen = freeze(desk.database, desk.settings.folder, desk.settings.ingest.min_free_disk_mb)
        write_backup(desk.settings, target, frozen, secrets=True, say=quietly)
        there = desk.settings.model_copy(update={"data_dir": tmp_path / "restored"})
        assert restore(there, target, quietly).decisions == 1


def test_a_restore_without_space_can_be_repeated(disk: Disk, tmp_path: Path) -> None:
    with open_desk(tmp_path / "data") as desk:
        desk.approved()
        target = tmp_path / "backup.tar"
        frozen = freeze(desk.database, desk.settings.folder, desk.settings.ingest.min_free_disk_mb)
        write_backup(desk.settings, target, frozen, secrets=True, say=quietly)
        settings = desk.settings.model_copy(update={"data_dir": disk.folder / "data"})
    (disk.folder / "data").mkdir()
    disk.fill()
    os.truncate(disk.folder / "ballast", (disk.folder / "ballast").stat().st_size - 65_536)
    with pytest.raises((DiskFull, DataDamaged)):
        restore(settings, target, quietly)
    disk.free()
    assert restore(settings, target, quietly).decisions == 1


def test_a_rebuild_without_space_leaves_the_old_database(disk: Disk) -> None:
    with open_desk(disk.folder / "data") as desk:
        desk.approved()
        settings = desk.settings
    before = (disk.folder / "data" / "flywheel.duckdb").read_bytes()
    disk.fill()
    with pytest.raises((DiskFull, DataDamaged, OSError)):
        rebuild(settings, quietly)
    assert (disk.folder / "data" / "flywheel.duckdb").read_bytes() == before
    disk.free()
    assert rebuild(settings, quietly).counts["decisions"] == 1


def test_an_offline_rollback_without_space_changes_nothing(disk: Disk) -> None:
    with open_desk(disk.folder / "data") as desk:
        desk.approved()
        desk.approved()
        settings = desk.settings
    # A whole number of pages, so that the next line needs a new one.
    lines = (desk.folder / "decisions.jsonl").read_bytes()
    disk.fill()
    live = (desk.folder / "live.json").read_bytes()
    try:
        roll_back_offline(settings, None, None, reason="r", operator="ann")
    except DiskFull:
        assert (desk.folder / "live.json").read_bytes() == live
    disk.free()
    assert (desk.folder / "decisions.jsonl").read_bytes().startswith(lines)
    with open_desk(disk.folder / "data") as again:  # whichever it was, both copies agree
        champion = read_live(again.live_path, open_keys(again.folder).live).tasks[TASK].champion
        assert champion is not None
        assert champion.student == again.champion()


def is_held(rig: Rig) -> bool:
    held = rig.metrics.ingest_held.collect()
    return any(sample.value == 1 for metric in held for sample in metric.samples)


def test_ingest_waits_for_space_and_counts_everything_once(disk: Disk) -> None:
    with open_rig(disk.folder) as rig:
        ingest = make_ingest(rig)
        producer = Producer(disk.folder)
        producer.send(*(record(f"e-{n}", f"text number {n} " * 20) for n in range(300)))
        producer.close()
        disk.fill()
        done: list[int] = []

        def drain() -> None:
            while count := ingest.run_once():
                done.append(count)

        thread = Thread(target=drain)
        thread.start()
        wait_for("an attempt", lambda: done or is_held(rig), 60)
        disk.free()
        thread.join(60)
        assert not thread.is_alive()
        assert rig.scalar("SELECT sum(events) FROM traffic WHERE task = ?", CORE_TASK.name) == 300
    with closing(Database(disk.folder / "flywheel.duckdb")) as again, again.snapshot() as tx:
        assert tx.execute("SELECT sum(events) FROM traffic").fetchall() == [(300,)]


READ_ONLY = """
import sys
from pathlib import Path
from pipelines.errors import FlywheelError
from service.learner.daemon import run_learner
from service.settings import Settings
try:
    run_learner(Settings(data_dir=Path(sys.argv[1])))
except FlywheelError as error:
    print(type(error).__name__, error)
"""


def test_a_read_only_folder_is_said_and_nothing_starts(disk: Disk) -> None:
    with open_desk(disk.folder / "data"):
        pass
    remount = ["mount", "-o", "remount,ro", str(disk.folder)]
    subprocess.run(remount, check=True)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(disk.folder / "data")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("SettingsError"), done.stdout + done.stderr
    assert "cannot be written" in done.stdout
    assert "Traceback" not in done.stderr


def test_new_keys_without_space_are_absent(disk: Disk) -> None:
    (disk.folder / "data" / "secrets").mkdir(parents=True)
    disk.fill()
    with pytest.raises(DiskFull):
        open_keys(disk.folder / "data")
    disk.free()
    assert open_keys(disk.folder / "data").internal


SERVICE = """
[gateway]
port = 0
[learner]
port = 0
[ingest]
min_free_disk_mb = 4
[tasks.support]
models = ["gpt-support"]
labels = ["a", "b"]
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_full_disk_turns_readiness_off_and_space_turns_it_on(disk: Disk, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=140m", str(disk.folder)], check=True)
    with running_service(disk.folder, SERVICE) as running:
        ready = f"{running.learner}/readyz"
        wait_for("readiness", lambda: httpx2.get(ready).status_code == 200)
        before = running.pid("learner")
        disk.fill()
        wait_for("no readiness", lambda: httpx2.get(ready, timeout=30).status_code == 503)
        assert httpx2.get(f"{running.gateway}/healthz").status_code == 200
        disk.free()
        wait_for("readiness again", lambda: httpx2.get(ready, timeout=30).status_code == 200)
        assert running.pid("learner") == before, "it held, and did not end"
