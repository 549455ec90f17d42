"""A power cut, played: of all that was written only what was synced is left.

`kill -9` cannot show a missing fsync, because the kernel keeps what a dead process has written.
So a witness stands where the program calls the kernel: it remembers the content of every file
and the names in every folder as they were at their last sync. Two disks are built from that,
for the two ways in which a file system may tear: one where only synced names survive, and one
where every rename survives at once but a file holds only what was synced of it.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.artifacts import Artifacts
from storage.database import Database
from storage.decisions import read_file, record_decision, verify_chain
from storage.durable import write_durably
from storage.ledger import Amounts, Ledger
from storage.live import Live, read_live, write_live
from storage.migrate import migrate

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = b"k" * 32
Names = dict[str, int]  # name to inode


class Disk:
    """What a power cut would leave of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, Names] = {folder.stat().st_ino: {}}

    def note_sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {one.name: one.stat().st_ino for one in path.iterdir()}
        else:
            self._contents[status.st_ino] = path.read_bytes()

    def names_only_as_synced(self, into: Path) -> Path:
        """A file system that forgets renames and new names until their folder is synced."""
        folders = {path.stat().st_ino for path in self._all() if path.is_dir()}
        self._rebuild(into, self._folder.stat().st_ino, folders)
        return into

    def contents_only_as_synced(self, into: Path) -> Path:
        """A file system that writes names at once and contents when they are synced."""
        for path in self._all():
            copy = into / path.relative_to(self._folder)
            if path.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(self._contents.get(path.stat().st_ino, b""))
        return into

    def _all(self) -> Iterator[Path]:
        yield self._folder
        yield from sorted(self._folder.rglob("*"))

    def _rebuild(self, into: Path, inode: int, folders: set[int]) -> None:
        into.mkdir(parents=True, exist_ok=True)
        for name, child in self._names.get(inode, {}).items():
            if child in folders:
                self._rebuild(into / name, child, folders)
            else:
                (into / name).write_bytes(self._contents.get(child, b""))


Crash = Callable[[Disk, Path], Path]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Watches the syncs of this process in `tmp_path / "data"`."""
    folder = tmp_path / "data"
    folder.mkdir()
    watched = Disk(folder)
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def sync(descriptor: int, real: Callable[[int], None] = real) -> None:
            real(descriptor)
            watched.note_sync(descriptor)

        monkeypatch.setattr(os, name, sync)
    return watched


both = pytest.mark.parametrize(
    "crash", [Disk.names_only_as_synced, Disk.contents_only_as_synced], ids=["names", "contents"]
)


def scratch(folder: Path) -> Path:
    made = folder / "scratch"
    (made / "deep" / "er").mkdir(parents=True)
    (made / "head.safetensors").write_bytes(b"weights" * 1000)
    (made / "deep" / "er" / "student.json").write_text("{}")
    return made


def settled(data: Path) -> Artifacts:
    """Artifacts whose own folders are as old as the installation."""
    artifacts = Artifacts(data / "artifacts")
    for folder in (data, data / "artifacts", *(data / "artifacts").iterdir()):
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return artifacts


@both
def test_a_published_artifact_survives_a_power_cut(
    disk: Disk, tmp_path: Path, crash: Crash
) -> None:
    artifacts = settled(tmp_path / "data")
    published = artifacts.publish("student", scratch(tmp_path / "data"), {"number": 1})
    left = Artifacts(crash(disk, tmp_path / "left") / "artifacts")
    assert left.open("student", published.digest).about == {"number": 1}


def test_a_power_cut_while_publishing_leaves_the_artifact_whole_or_absent(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after each rename, on the disk that keeps renames and forgets contents."""
    artifacts = settled(tmp_path / "data")
    looks: list[bool] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        left = disk.contents_only_as_synced(tmp_path / f"left-{len(looks)}")
        after = Artifacts(left / "artifacts")
        present = after.digests("student")
        for digest in present:
            after.open("student", digest)
        looks.append(bool(present))

    monkeypatch.setattr(os, "replace", replace)
    artifacts.publish("student", scratch(tmp_path / "data"), {"number": 1})
    assert looks == [False, True], "the manifest's own rename, then the folder's"


@both
def test_what_is_published_live_survives_a_power_cut(
    disk: Disk, tmp_path: Path, crash: Crash
) -> None:
    path = tmp_path / "data" / "live.json"
    for serial in (1, 2):
        write_live(path, Live(serial=serial), KEY)
    assert read_live(crash(disk, tmp_path / "left") / "live.json", KEY).serial == 2


@both
def test_a_durable_write_survives_a_power_cut(disk: Disk, tmp_path: Path, crash: Crash) -> None:
    write_durably(tmp_path / "data" / "a.json", b'{"a": 1}')
    left = crash(disk, tmp_path / "left")
    assert json.loads((left / "a.json").read_bytes()) == {"a": 1}


@both
def test_an_intended_call_is_known_after_a_power_cut(
    disk: Disk, tmp_path: Path, crash: Crash
) -> None:
    settled(tmp_path / "data")
    (tmp_path / "data" / "ledger").mkdir()
    settled(tmp_path / "data")
    ledger = Ledger(tmp_path / "data" / "ledger")
    ledger.intend("k", event_id="e", request=b"q", reserve=Amounts(tokens=1), now=NOW)
    left = crash(disk, tmp_path / "left")
    lines = (left / "ledger" / "ledger.jsonl").read_bytes().splitlines()
    assert [json.loads(line[9:])["step"] for line in lines] == ["intent"]
    ledger.close()


@both
def test_a_decision_survives_a_power_cut(disk: Disk, tmp_path: Path, crash: Crash) -> None:
    file = tmp_path / "data" / "decisions.jsonl"
    database = Database(tmp_path / "flywheel.duckdb")
    migrate(database)
    with database.transaction() as tx:
        for number in range(2):
            record_decision(
                tx,
                file,
                task="support",
                action="approve",
                student=f"{number}" * 64,
                report="r",
                operator="ada",
                reason="",
                now=NOW,
            )
    database.close()
    links = read_file(crash(disk, tmp_path / "left") / "decisions.jsonl")
    verify_chain(links)
    assert len(links) == 2
