"""Decisions are chained, on file before they count, and survive a crash or a lost database."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.errors import DataDamaged
from pipelines.types import Decision, DecisionAction
from storage.database import Database
from storage.decisions import (
    chain,
    champion,
    decisions,
    read_file,
    reconcile,
    record_decision,
    verify_chain,
)
from storage.migrate import migrate

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "flywheel.duckdb")
    migrate(opened)
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def decide(
    database: Database, file: Path, student: str, action: DecisionAction = "approve"
) -> Decision:
    with database.transaction() as tx:
        minutes = timedelta(minutes=len(decisions(tx)))
        return record_decision(
            tx,
            file,
            task="support",
            action=action,
            student=student,
            report="r" * 64,
            operator="ada",
            reason="looks «good»",
            now=START + minutes,
        )


def stored(database: Database) -> list[Decision]:
    with database.snapshot() as tx:
        return decisions(tx)


def test_each_decision_names_the_digest_of_the_one_before(database: Database, file: Path) -> None:
    first = decide(database, file, "one")
    second = decide(database, file, "two")

    assert (first.sequence, second.sequence) == (1, 2)
    assert second.previous_digest == first.digest
    assert stored(database) == [first, second] == read_file(file)
    verify_chain(stored(database))


def test_champion_is_the_student_of_the_latest_approve_or_rollback(
    database: Database, file: Path
) -> None:
    decide(database, file, "one")
    decide(database, file, "two")
    decide(database, file, "three", "reject")
    with database.snapshot() as tx:
        assert champion(tx, "support") == "two"
    decide(database, file, "one", "rollback")

    with database.snapshot() as tx:
        assert champion(tx, "support") == "one"
        assert champion(tx, "other") is None
        assert chain(tx, "support").approved == ("one", "two")


@pytest.mark.parametrize("field", ["student", "operator", "reason", "decided_at", "action"])
def test_a_changed_field_breaks_the_chain_at_its_link(
    database: Database, file: Path, field: str
) -> None:
    for student in ("one", "two", "three"):
        decide(database, file, student)
    lines = file.read_text().splitlines()
    content = json.loads(lines[1])
    content[field] = "2026-03-02T00:00:00+00:00" if field == "decided_at" else "reject"
    lines[1] = json.dumps(content)
    file.write_text("\n".join(lines) + "\n")

    with pytest.raises(DataDamaged, match="decision 2 was changed"):
        reconcile(database, file)


def test_a_removed_link_breaks_the_chain(database: Database, file: Path) -> None:
    for student in ("one", "two", "three"):
        decide(database, file, student)
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0]}\n{lines[2]}\n")

    with pytest.raises(DataDamaged, match="decision 2 is missing"):
        reconcile(database, file)


def test_a_changed_row_is_noticed_at_start(database: Database, file: Path) -> None:
    decide(database, file, "one")
    with database.transaction() as tx:
        tx.execute("UPDATE decisions SET student = 'evil'")

    with pytest.raises(DataDamaged, match="decision 1 was changed"):
        reconcile(database, file)


def test_a_rebuilt_database_knows_every_decision(
    database: Database, file: Path, tmp_path: Path
) -> None:
    known = [decide(database, file, student) for student in ("one", "two")]
    rebuilt = Database(tmp_path / "rebuilt.duckdb")
    migrate(rebuilt)

    assert reconcile(rebuilt, file) == known
    assert reconcile(rebuilt, file) == []
    assert stored(rebuilt) == known
    rebuilt.close()


def test_a_crash_between_file_and_commit_is_recovered_at_start(
    database: Database, file: Path
) -> None:
    decide(database, file, "one")

    class Crashed(BaseException):
        pass

    def decide_and_crash() -> None:
        with database.transaction() as tx:
            record_decision(
                tx,
                file,
                task="support",
                action="approve",
                student="two",
                report=None,
                operator="ada",
                reason="",
                now=START + timedelta(hours=1),
            )
            raise Crashed

    with pytest.raises(Crashed):
        decide_and_crash()
    assert [link.student for link in stored(database)] == ["one"]

    assert [link.student for link in reconcile(database, file)] == ["two"]
    with database.snapshot() as tx:
        assert champion(tx, "support") == "two"


def test_a_torn_last_line_is_dropped_and_the_next_decision_starts_its_own(
    database: Database, file: Path
) -> None:
    decide(database, file, "one")
    with file.open("ab") as opened:
        opened.write(b'{"sequence":2,"task":"supp')

    assert reconcile(database, file) == []
    decide(database, file, "two")
    assert [link.student for link in read_file(file)] == ["one", "two"]


def test_a_file_that_lacks_decisions_is_refused(database: Database, file: Path) -> None:
    decide(database, file, "one")
    decide(database, file, "two")
    file.write_text(file.read_text().splitlines()[0] + "\n")

    with pytest.raises(DataDamaged, match=r"ends at decision 1, the database knows 2"):
        reconcile(database, file)


def test_a_file_that_cannot_be_written_blocks_the_decision(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "not-a-file"
    os.mkdir(folder)

    with pytest.raises(OSError, match="directory"):
        decide(database, folder, "one")
    assert stored(database) == []
