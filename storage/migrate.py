"""Applies storage/migrations/*.sql in order, each in its own transaction."""

from collections.abc import Collection
from pathlib import Path

from pipelines.errors import DataDamaged
from storage.database import Cursor, Database

MIGRATIONS = Path(__file__).parent / "migrations"

CREATE_TABLE = "CREATE TABLE IF NOT EXISTS schema_migrations (name TEXT PRIMARY KEY)"
HAS_TABLE = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_migrations'"
SELECT_APPLIED = "SELECT name FROM schema_migrations ORDER BY name"
INSERT_APPLIED = "INSERT INTO schema_migrations VALUES (?)"


def applied(tx: Cursor) -> list[str]:
    """The names of the migrations that this database has had."""
    (known,) = tx.execute(HAS_TABLE).fetchall()[0]
    return [str(name) for (name,) in tx.execute(SELECT_APPLIED).fetchall()] if known else []


def migrate(
    database: Database, folder: Path = MIGRATIONS, *, only: Collection[str] | None = None
) -> list[str]:
    """Bring the schema up to date and return the names just applied; `only` these, where given.

    Raises `DataDamaged` for a database that a newer program has written.
    """
    with database.snapshot() as tx:
        done = set(applied(tx))
    files = sorted(folder.glob("*.sql"))
    unknown = done - {path.name for path in files}
    if unknown:
        raise DataDamaged(
            f"the database was written by a newer flywheel ({', '.join(sorted(unknown))}); "
            "install that version or restore a backup"
        )
    new = []
    for path in files:
        if path.name in done or (only is not None and path.name not in only):
            continue
        with database.transaction() as tx:
            tx.execute(CREATE_TABLE)  # with the first: a file with less would be a foreign one
            tx.execute(path.read_text())
            tx.execute(INSERT_APPLIED, [path.name])
        new.append(path.name)
    return new
