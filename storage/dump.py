"""The database as Parquet files, and back: one consistent state, whatever is written meanwhile."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataDamaged, DiskFull
from storage.database import Cursor, Database, sql_text
from storage.decisions import champion
from storage.folder import DataFolder
from storage.migrate import MIGRATIONS, applied, migrate
from storage.traffic import all_offsets
from storage.versions import tasks_with_versions, version_by_digest

# Tables are known by their migrations, so a dump may be older than the program.
SELECT_TABLES = """
SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main' AND NOT internal
ORDER BY table_name
"""
COPY_OUT = "COPY (SELECT * FROM {table}) TO {path} (FORMAT parquet, COMPRESSION zstd)"
COPY_IN = "INSERT INTO {table} BY NAME SELECT * FROM read_parquet({path})"
COPY_IN_BESIDE = COPY_IN + " ON CONFLICT DO NOTHING"
COUNT = "SELECT count(*) FROM {table}"
SELECT_COMMITS = "SELECT count FROM commits"
SET_COMMITS = "UPDATE commits SET count = $count"
# What a fresh database has by its migrations, or counts by itself.
MADE_ELSEWHERE = frozenset({"schema_migrations", "commits"})
FORGOTTEN_SECONDS = 86_400  # a backup that takes longer was killed
BEGUN_BY_MIGRATIONS = frozenset({"meta"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What was written: rows by table, the migrations that made them, the commits so far."""

    rows: Mapping[str, int]
    migrations: Sequence[str]
    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """One state of the database in a folder of its own, and what belongs to that state."""

    folder: str
    dump: Dump
    decisions_bytes: int
    offsets: Mapping[str, Mapping[str, int]]  # topic -> partition -> next offset
    champions: Mapping[str, str]


def dump(database: Database, folder: Path, *, note: Callable[[], None] = lambda: None) -> Dump:
    """Write every table to `folder` as of one moment between two write transactions.

    `note` is called at that moment, while nothing writes: what belongs to the same state can be
    looked at then. Writers go on while the tables are copied.
    """
    with database.snapshot(note) as tx:
        names = [str(name) for (name,) in tx.execute(SELECT_TABLES).fetchall()]
        migrations = applied(tx)
        commits = int(tx.execute(SELECT_COMMITS).fetchall()[0][0])
        rows = {}
        for name in names:
            path = sql_text(str(folder / f"{name}.parquet"))
            rows[name] = int(
                tx.execute(COPY_OUT.format(table=_name(name), path=path)).fetchall()[0][0]
            )
    return Dump(rows=rows, migrations=migrations, commits=commits)


def load(database: Database, folder: Path, dumped: Dump) -> None:
    """Fill a new database with a dump, at the schema that it was written with.

    Raises `DataDamaged` for a dump of a newer program, and where rows are missing.
    """
    files = {path.name for path in MIGRATIONS.glob("*.sql")}
    if unknown := sorted(set(dumped.migrations) - files):
        raise DataDamaged(
            f"the backup was made by a newer flywheel ({', '.join(unknown)}); install that version"
        )
    migrate(database, only=dumped.migrations)
    with database.transaction() as tx:
        for name in dumped.rows:
            if name not in MADE_ELSEWHERE:
                path = sql_text(str(folder / f"{name}.parquet"))
                copy = COPY_IN_BESIDE if name in BEGUN_BY_MIGRATIONS else COPY_IN
                tx.execute(copy.format(table=_name(name), path=path))
        tx.execute(SET_COMMITS, {"count": dumped.commits})
        _refuse_missing(tx, dumped.rows)


def freeze(database: Database, folder: DataFolder, min_free_mb: int) -> Frozen:
    """Copy the database as Parquet into a scratch folder; whoever asked for it removes that.

    Raises `DiskFull` where the copy would take what ingest must have free.
    """
    data = folder.root
    _remove_forgotten(folder.frozen)
    size = sum(path.stat().st_size for path in data.glob(f"{folder.database.name}*"))
    left = shutil.disk_usage(data).free - size - min_free_mb * 2**20
    if left < 0:
        raise DiskFull(
            f"a copy of the database needs up to {size // 2**20} MB in {data}, and "
            f"{min_free_mb} MB must stay free: free {-left // 2**20 + 1} MB"
        )
    made = folder.new_frozen()
    made.mkdir(parents=True, mode=0o700)
    beside: dict[str, Any] = {}

    def look() -> None:
        """While nothing writes: a decision is in the file if and only if it is in the tables."""
        beside["decisions_bytes"] = _size(folder.decisions)
        with database.snapshot() as tx:
            beside["offsets"] = all_offsets(tx)
            beside["champions"] = _champions(tx)

    try:
        found = dump(database, made, note=look)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Frozen(folder=str(made.resolve()), dump=found, **beside)


def _remove_forgotten(copies: Path) -> None:
    """What backups that were killed have left."""
    for made in copies.glob("*"):
        if time.time() - made.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(made, ignore_errors=True)


def read_frozen(told: Mapping[str, Any]) -> Frozen:
    """As the learner's API says it."""
    return Frozen(**{**told, "dump": Dump(**told["dump"])})


def _refuse_missing(tx: Cursor, rows: Mapping[str, int]) -> None:
    for name, wanted in rows.items():
        found = int(tx.execute(COUNT.format(table=_name(name))).fetchall()[0][0])
        if name not in MADE_ELSEWHERE and found != wanted:
            raise DataDamaged(f"the backup's table {name} has {found} rows, not {wanted}")


def _name(table: str) -> str:
    quoted = table.replace('"', '""')
    return f'"{quoted}"'


def _champions(tx: Cursor) -> dict[str, str]:
    found = {}
    for task in tasks_with_versions(tx):
        digest = champion(tx, task)
        known = version_by_digest(tx, task, digest) if digest else None
        if known is not None:
            found[task] = known.name
    return found


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
