"""What only a topic in a file can suffer: foreign files, full disks, killed writers, retention."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from pipelines.errors import BrokerUnavailable, DataDamaged, DiskFull, InvalidMessage, SettingsError
from pipelines.types import Record
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter, prune
from service.topics.topic_file import open_file, read_head

ROOT = Path(__file__).parents[2]

# Writes for ever; says which record is durable.
ENDLESS_WRITER = """
import sys
from pathlib import Path
from service.topics.embedded import EmbeddedTopicWriter
writer = EmbeddedTopicWriter(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    writer.send(f"{sys.argv[2]}-{number}".encode())
    if number % 7 == 0:
        writer.flush(30)
        print(number, flush=True)
writer.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "topic.db"


def write(path: Path, count: int, *, value: bytes = b"x") -> None:
    with closing(EmbeddedTopicWriter(path)) as writer:
        for number in range(count):
            writer.send(value)
            if number % 5000 == 0:
                writer.flush(20)
        writer.flush(20)


def fill(writer: EmbeddedTopicWriter, padding: bytes, durable: list[int]) -> None:
    """Write until it fails; what is durable is in the list."""
    while True:
        writer.send(b"%d" % len(durable) + padding)
        writer.flush(20)
        durable.append(len(durable))


def send(writer: EmbeddedTopicWriter, count: int, value: bytes) -> None:
    for _ in range(count):
        writer.send(value)


def read_all(path: Path) -> list[Record]:
    with closing(EmbeddedTopicReader(path)) as reader:
        reader.seek({})
        records: list[Record] = []
        while found := reader.poll(max_records=500, timeout_seconds=0.05).records:
            records += found
        return records


def start_writer(path: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", ENDLESS_WRITER, str(path), name, str(count)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_only_the_owner_may_read_prompts(path: Path) -> None:
    write(path, 1)
    for file in path.parent.glob("topic.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"not a database", b"\x00" * 4096, os.urandom(8192)])
def test_a_foreign_file_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for kind in (EmbeddedTopicReader, EmbeddedTopicWriter):
        with pytest.raises(DataDamaged, match=r"topic\.db"):
            kind(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(DataDamaged, match="another program"):
        EmbeddedTopicReader(path)
    assert path.read_bytes() == before


def test_a_format_from_the_future_is_refused(path: Path) -> None:
    write(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(DataDamaged, match="format 2"):
        EmbeddedTopicReader(path)


def test_a_torn_file_is_noticed_and_said(path: Path) -> None:
    write(path, 2000, value=b"x" * 500)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))
    with pytest.raises(DataDamaged):
        read_all(path)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError):
        EmbeddedTopicWriter(tmp_path / "file" / "topic.db")


def test_a_full_topic_refuses_loses_nothing_and_recovers_by_retention(path: Path) -> None:
    with closing(EmbeddedTopicWriter(path, max_file_bytes=400_000, max_queued=50)) as writer:
        done: list[int] = []
        with pytest.raises(DiskFull, match="No space left"):
            fill(writer, b"." * 10_000, done)
        durable = len(done)
        assert 20 <= durable <= 45
        with pytest.raises(BrokerUnavailable, match="No space left"):
            send(writer, 100, b"waits")

        assert prune(path, before_offset=durable - 1) == durable - 1
        writer.flush(20)  # the queue was kept

        values = [record.value or b"" for record in read_all(path)]
        assert [v.rstrip(b".") for v in values[:2]] == [b"%d" % (durable - 1), b"%d" % durable]
        assert values[2:] == [b"waits"] * 49
        assert writer.failed() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "flywheel-test", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a small disk: run as root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_pauses_and_never_corrupts(small_disk: Path) -> None:
    path, ballast = small_disk / "topic.db", small_disk / "ballast"
    with closing(EmbeddedTopicWriter(path)) as writer:
        durable: list[int] = []
        ballast.write_bytes(b"0" * 1_500_000)
        with pytest.raises(DiskFull):
            fill(writer, b"." * 50_000, durable)

        ballast.unlink()
        writer.flush(20)

    values = [(record.value or b"").rstrip(b".") for record in read_all(path)]
    assert values == [b"%d" % i for i in range(len(durable) + 1)]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_killed_writer_loses_nothing_that_it_called_durable(path: Path) -> None:
    for round_ in range(3):
        process = start_writer(path, f"w{round_}", 1_000_000)
        assert process.stdout
        said = [process.stdout.readline() for _ in range(10 + 5 * round_)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        said += process.stdout.readlines()
        process.stdout.close()
        durable = int([line for line in said if line.endswith("\n")][-1])

        records = read_all(path)
        mine = [r.value for r in records if (r.value or b"").startswith(b"w%d-" % round_)]
        assert [r.offset for r in records] == list(range(len(records)))
        assert mine == [b"w%d-%d" % (round_, i) for i in range(len(mine))]
        assert len(mine) > durable


def test_several_processes_write_at_once(path: Path) -> None:
    processes = [start_writer(path, name, 300) for name in "abc"]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    records = read_all(path)
    assert [r.offset for r in records] == list(range(900))
    for name in "abc":
        mine = [r.value for r in records if (r.value or b"").startswith(name.encode())]
        assert mine == [f"{name}-{i}".encode() for i in range(300)]


def test_one_topic_is_created_when_several_open_it_at_once(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}.db"
        together = Barrier(6)

        def identity(path: Path = path, together: Barrier = together) -> str:
            together.wait(60)
            with closing(open_file(path)) as connection:
                return read_head(connection).identity

        with ThreadPoolExecutor(6) as pool:
            found = [one.result() for one in [pool.submit(identity) for _ in range(6)]]
        assert len(set(found)) == 1


def test_retention_by_age_keeps_what_is_younger(path: Path) -> None:
    write(path, 10)
    time.sleep(0.05)
    middle = int(time.time() * 1000)
    time.sleep(0.05)
    write(path, 5)

    assert prune(path, older_than_ms=middle) == 10
    assert [r.offset for r in read_all(path)] == list(range(10, 15))


def test_retention_by_age_never_passes_the_offset_that_is_still_needed(path: Path) -> None:
    write(path, 10)
    future = int(time.time() * 1000) + 10_000
    assert prune(path, older_than_ms=future, before_offset=4) == 4
    assert prune(path, older_than_ms=future, before_offset=4) == 0
    assert prune(path) == 0
    assert [r.offset for r in read_all(path)] == list(range(4, 10))


def test_offsets_go_on_after_everything_was_removed_and_the_space_is_given_back(
    path: Path,
) -> None:
    write(path, 12_000, value=b"x" * 200)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.stat().st_size
    assert prune(path, older_than_ms=int(time.time() * 1000) + 10_000) == 12_000
    write(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert [r.offset for r in read_all(path)] == [12_000]
    assert path.stat().st_size < before / 10


def test_a_full_queue_is_refused_at_once(path: Path) -> None:
    with closing(EmbeddedTopicWriter(path, max_queued=5)) as writer:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # somebody else writes, and takes long
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="5 records wait"):
                send(writer, 6, b"x")
            assert time.monotonic() - began < 5
            with pytest.raises(BrokerUnavailable, match="not on disk within"):
                writer.flush(0.1)
            other.execute("ROLLBACK")
        writer.flush(20)
    assert len(read_all(path)) == 5


def test_a_monstrous_record_is_refused(path: Path) -> None:
    with closing(EmbeddedTopicWriter(path)) as writer, pytest.raises(InvalidMessage):
        writer.send(b"x" * (17 << 20))


def test_a_closed_writer_says_so(path: Path) -> None:
    writer = EmbeddedTopicWriter(path)
    writer.close()
    writer.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        writer.send(b"x")


def test_a_batch_is_bounded_in_bytes(path: Path) -> None:
    write(path, 5, value=b"x" * (10 << 20))
    with closing(EmbeddedTopicReader(path)) as reader:
        reader.seek({})
        batch = reader.poll(max_records=100, timeout_seconds=1)
        assert len(batch.records) == 4
        assert batch.next_offsets == {0: 4}
        assert len(reader.poll(max_records=100, timeout_seconds=1).records) == 1
