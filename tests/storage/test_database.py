"""The DuckDB file: one holder, nothing half done, nothing lost without a word."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipelines.errors import DataDamaged, DataLocked, DiskFull
from storage.database import Database
from storage.migrate import MIGRATIONS, migrate
from storage.versions import versions

HOLD = """
import sys
from pathlib import Path
from storage.database import Database
database = Database(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from storage.database import Database
from storage.migrate import migrate
database = Database(Path(sys.argv[1]))
migrate(database)
for number in range(5):
    with database.transaction() as tx:
        tx.execute("INSERT INTO meta VALUES (?, 'x')", [f"k{number}"])
print("written", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flywheel.duckdb"


def opened(path: Path) -> Database:
    database = Database(path)
    migrate(database)
    return database


def keys(database: Database) -> list[str]:
    with database.snapshot() as tx:
        return [row[0] for row in tx.execute("SELECT key FROM meta ORDER BY key").fetchall()]


def add(database: Database, key: str) -> None:
    with database.transaction() as tx:
        tx.execute("INSERT INTO meta VALUES (?, 'x')", [key])


def test_failed_transaction_leaves_nothing(path: Path) -> None:
    database = opened(path)
    with pytest.raises(duckdb.Error), database.transaction() as tx:
        tx.execute("INSERT INTO meta VALUES ('half', 'x'); CREATE TABLE half (x INT); SELECT no")
    assert keys(database) == ["application"]
    add(database, "whole")
    assert keys(database) == ["application", "whole"]
    database.close()


def test_snapshot_sees_one_state_while_a_writer_writes(path: Path) -> None:
    database = opened(path)
    with database.snapshot() as reader:
        count = "SELECT count(*) FROM meta"
        assert reader.execute(count).fetchone() == (1,)
        add(database, "later")
        assert reader.execute(count).fetchone() == (1,)
    assert keys(database) == ["application", "later"]
    database.close()


def test_what_was_committed_survives_a_kill(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_DIE, str(path)], capture_output=True, text=True
    )
    assert done.stdout == "written\n", done.stderr
    database = opened(path)
    assert len(keys(database)) == 6
    database.close()


def test_cut_log_is_noticed(path: Path) -> None:
    """DuckDB itself drops a torn end of its log without a word."""
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(path)], capture_output=True)
    log = path.with_name(path.name + ".wal")
    os.truncate(log, log.stat().st_size - 40)
    with pytest.raises(DataDamaged, match="log was cut") as caught:
        Database(path)
    path.with_suffix(".commits").unlink()  # what the message says
    assert "flywheel.commits" in str(caught.value)
    assert "`flywheel rebuild`" in str(caught.value)
    database = opened(path)
    assert 1 <= len(keys(database)) < 6
    database.close()


def test_database_that_vanished_is_noticed(path: Path) -> None:
    opened(path).close()
    path.unlink()
    path.with_name(path.name + ".wal").unlink(missing_ok=True)
    with pytest.raises(DataDamaged, match="were acknowledged"):
        Database(path)


def test_counter_that_holds_no_number_is_refused(path: Path) -> None:
    opened(path).close()
    path.with_suffix(".commits").write_bytes(b"\xff\x00 no number")
    with pytest.raises(DataDamaged, match="holds no number"):
        Database(path)


def test_file_of_another_program_is_left_alone(path: Path) -> None:
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE TABLE theirs AS SELECT 1 AS x")
    before = path.read_bytes()
    with pytest.raises(DataDamaged, match="another program"):
        Database(path)
    assert path.read_bytes() == before
    assert not path.with_suffix(".commits").exists()


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be one" * 200])
def test_corrupt_file_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataDamaged, match="cannot be opened"):
        Database(path)
    assert path.read_bytes() == content


def test_flipped_bytes_in_the_header_are_refused(path: Path) -> None:
    opened(path).close()
    content = bytearray(path.read_bytes())
    for place in (20, 4100, 8200):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataDamaged):
        Database(path)


def test_second_process_is_told_who_holds_the_file(path: Path) -> None:
    opened(path).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataLocked, match="another process holds"):
            Database(path)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    opened(path).close()


def test_close_may_be_called_twice(path: Path) -> None:
    database = opened(path)
    database.close()
    database.close()


def test_migrations_are_applied_once_and_in_order(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    names = sorted(source.name for source in MIGRATIONS.glob("*.sql"))
    for name in names:
        (folder / name).write_text((MIGRATIONS / name).read_text())
    database = Database(path)
    assert migrate(database, folder) == names
    (folder / "992_c.sql").write_text("ALTER TABLE extra ADD COLUMN more INTEGER")
    (folder / "991_b.sql").write_text("CREATE TABLE extra (x INTEGER)")
    assert migrate(database, folder) == ["991_b.sql", "992_c.sql"]
    assert migrate(database, folder) == []
    database.close()


def test_failed_migration_leaves_the_schema_as_it_was(path: Path, tmp_path: Path) -> None:
    database = opened(path)
    folder = tmp_path / "migrations"
    folder.mkdir()
    for source in MIGRATIONS.glob("*.sql"):
        (folder / source.name).write_text("")
    (folder / "991_b.sql").write_text("CREATE TABLE extra (x INTEGER); SELECT no_such_thing")
    with pytest.raises(duckdb.Error):
        migrate(database, folder)
    (folder / "991_b.sql").write_text("CREATE TABLE extra (x INTEGER)")
    assert migrate(database, folder) == ["991_b.sql"]
    database.close()


def test_newer_schema_is_refused(path: Path, tmp_path: Path) -> None:
    database = opened(path)
    with database.transaction() as tx:
        tx.execute("INSERT INTO schema_migrations VALUES ('999_future.sql')")
    with pytest.raises(DataDamaged, match=r"newer flywheel \(999_future.sql\)"):
        migrate(database)
    database.close()


def test_first_start_that_was_killed_between_two_steps_can_start_again(path: Path) -> None:
    """A file without the first migration must not look like another program's."""
    folder = path.parent / "none-yet"
    folder.mkdir()
    database = Database(path)
    assert migrate(database, folder) == []
    database.close()
    opened(path).close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk needs the right to mount one (root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_named_and_loses_nothing_committed(small_disk: Path) -> None:
    path = small_disk / "flywheel.duckdb"
    database = opened(path)
    add(database, "before")
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"x" * (free - 65_536))
    with pytest.raises(DiskFull, match="no space left"), database.transaction() as tx:
        tx.execute("CREATE TABLE big AS SELECT range AS x, uuid() AS y FROM range(200000)")
    filler.unlink()
    database.close()
    again = opened(path)
    assert keys(again) == ["application", "before"]
    add(again, "after")
    again.close()


def test_versions_of_the_first_schema_are_kept(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "001_first.sql").write_text((MIGRATIONS / "001_first.sql").read_text())
    database = Database(path)
    migrate(database, folder)
    with database.transaction() as tx:
        tx.execute(
            "INSERT INTO students VALUES ('support', 1, 'd', 'set', 'enc', 'head', 5, 6, "
            "TIMESTAMP '2026-01-01', 1.5, '{}')"
        )
    migrate(database)
    with database.snapshot() as tx:
        (version,) = versions(tx, "support")
    assert (version.student, version.base, version.family) == ("d", "enc", "head")
    database.close()
