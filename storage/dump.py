"""The database as Parquet files, and back: one consistent state, whatever is written meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataDamaged
from storage.database import Cursor, Database, sql_text
from storage.migrate import MIGRATIONS, applied, migrate

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
BEGUN_BY_MIGRATIONS = frozenset({"meta"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What was written: rows by table, the migrations that made them, the commits so far."""

    rows: Mapping[str, int]
    migrations: Sequence[str]
    commits: int


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


def _refuse_missing(tx: Cursor, rows: Mapping[str, int]) -> None:
    for name, wanted in rows.items():
        found = int(tx.execute(COUNT.format(table=_name(name))).fetchall()[0][0])
        if name not in MADE_ELSEWHERE and found != wanted:
            raise DataDamaged(f"the backup's table {name} has {found} rows, not {wanted}")


def _name(table: str) -> str:
    quoted = table.replace('"', '""')
    return f'"{quoted}"'
