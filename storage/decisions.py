"""Decisions: a hash chain in DuckDB and in an append-only file beside it.

The file is written and synced inside the transaction, before its commit. A crash between
the two leaves the file one link ahead, and `reconcile` adds the row at the next start; a
file that cannot be written blocks the decision. So the file is never behind, and a rebuilt
database knows every decision.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.decide import Chain
from pipelines.errors import DataDamaged, DiskFull
from pipelines.types import Decision, DecisionAction
from storage.database import Cursor, Database, from_db_time, to_db_time
from storage.durable import sync_folder
from storage.failpoints import passing

# A link's digest is taken over these: one more would break every chain there is.
IN_DIGEST = (
    "sequence",
    "task",
    "action",
    "student",
    "report",
    "operator",
    "reason",
    "decided_at",
    "previous_digest",
)
FIRST = "0" * 64  # what the first link names as its predecessor

INSERT_DECISION = """
INSERT INTO decisions (
    sequence, task, action, student, report, operator, reason, decided_at,
    previous_digest, digest
) VALUES (
    $sequence, $task, $action, $student, $report, $operator, $reason, $decided_at,
    $previous_digest, $digest
)
"""

_SELECT = """
SELECT sequence, task, action, student, report, operator, reason, decided_at,
    previous_digest, digest
FROM decisions
"""
SELECT_DECISIONS = _SELECT + "ORDER BY sequence"
SELECT_DECISIONS_OF_TASK = _SELECT + "WHERE task = $task ORDER BY sequence"
SELECT_RECENT_DECISIONS = (
    _SELECT
    + """WHERE $before IS NULL OR decided_at < $before
ORDER BY decided_at DESC, sequence DESC LIMIT $limit"""
)


def record_decision(
    tx: Cursor,
    file: Path,
    *,
    task: str,
    action: DecisionAction,
    student: str,
    report: str | None,
    operator: str,
    reason: str,
    now: datetime,
) -> Decision:
    """Append one link to the chain: synced to the file before the transaction can commit.

    Rows that an earlier crash left out are added first. Raises `DataDamaged` for a broken
    chain and `DiskFull` (or the OSError) when the file cannot be written: then nothing is
    decided.
    """
    links = _catch_up(tx, file)
    link = _next_link(links, task, action, student, report, operator, reason, now)
    _append(file, link)
    passing("decision.in_file")
    _insert(tx, link)
    return link


def record_in_file(
    file: Path,
    *,
    task: str,
    action: DecisionAction,
    student: str,
    report: str | None,
    operator: str,
    reason: str,
    now: datetime,
) -> Decision:
    """As `record_decision`, while nobody has the database open: `reconcile` adds the row.

    Only for whoever holds the data folder's lock.
    """
    _cut_torn_line(file)
    links = read_file(file)
    verify_chain(links)
    link = _next_link(links, task, action, student, report, operator, reason, now)
    _append(file, link)
    return link


def reconcile(database: Database, file: Path) -> list[Decision]:
    """At start: verify both copies and give the database the links that it lacks.

    Returns the links added. Raises `DataDamaged` where the chain is broken, where the two
    copies disagree, or where the file lacks what the database knows.
    """
    with database.transaction() as tx:
        before = len(decisions(tx))
        return list(_catch_up(tx, file)[before:])


def verify_chain(links: Sequence[Decision]) -> None:
    """Check every digest and every reference, or raise `DataDamaged` naming the link."""
    previous = FIRST
    for position, link in enumerate(links, start=1):
        if link.sequence != position:
            raise DataDamaged(f"decision {position} is missing: {link.sequence} follows")
        if link.previous_digest != previous:
            raise DataDamaged(f"decision {position} does not continue decision {position - 1}")
        if link.digest != digest_of(link):
            raise DataDamaged(f"decision {position} was changed after it was recorded")
        previous = link.digest


def digest_of(link: Decision) -> str:
    """SHA-256 over the canonical JSON of the link without its own digest."""
    content = _as_json(link)
    content = {name: content[name] for name in IN_DIGEST}
    return hashlib.sha256(_canonical(content)).hexdigest()


def read_file(file: Path) -> list[Decision]:
    """The links in the file. A torn last line was never acknowledged and is left out."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    lines = content.split(b"\n")[:-1]  # what follows the last newline is torn
    return [_read_line(file, number, line) for number, line in enumerate(lines, start=1)]


def decisions(tx: Cursor, task: str | None = None) -> list[Decision]:
    """All decisions, of one task or of all, oldest first."""
    if task is None:
        return _decisions(tx.execute(SELECT_DECISIONS).fetchall())
    return _decisions(tx.execute(SELECT_DECISIONS_OF_TASK, {"task": task}).fetchall())


def recent_decisions(tx: Cursor, limit: int, before: datetime | None = None) -> list[Decision]:
    """Of all tasks, newest first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    return _decisions(tx.execute(SELECT_RECENT_DECISIONS, values).fetchall())


def chain(tx: Cursor, task: str) -> Chain:
    """The decisions about a task, with what they say."""
    return Chain(task, tuple(decisions(tx, task)))


def champion(tx: Cursor, task: str) -> str | None:
    """The champion's content hash."""
    return chain(tx, task).champion


def _next_link(
    links: Sequence[Decision],
    task: str,
    action: DecisionAction,
    student: str,
    report: str | None,
    operator: str,
    reason: str,
    now: datetime,
) -> Decision:
    previous = links[-1] if links else None
    link = Decision(
        sequence=previous.sequence + 1 if previous else 1,
        task=task,
        action=action,
        student=student,
        report=report,
        operator=operator,
        reason=reason,
        decided_at=from_db_time(to_db_time(now)),
        previous_digest=previous.digest if previous else FIRST,
        digest="",
    )
    return replace(link, digest=digest_of(link))


def _catch_up(tx: Cursor, file: Path) -> list[Decision]:
    _cut_torn_line(file)
    written, stored = read_file(file), decisions(tx)
    verify_chain(written)
    verify_chain(stored)
    if len(stored) > len(written):
        raise DataDamaged(
            f"{file.name} ends at decision {len(written)}, the database knows {len(stored)}; "
            "restore the file from a backup"
        )
    for one, other in zip(stored, written, strict=False):
        if one != other:
            raise DataDamaged(
                f"decision {one.sequence} differs between the database and {file.name}"
            )
    for link in written[len(stored) :]:
        _insert(tx, link)
    return written


def _insert(tx: Cursor, link: Decision) -> None:
    values = {field.name: getattr(link, field.name) for field in fields(link)}
    tx.execute(INSERT_DECISION, values | {"decided_at": to_db_time(link.decided_at)})


def _append(file: Path, link: Decision) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    size = os.fstat(descriptor).st_size
    try:
        line = _canonical(_as_json(link)) + b"\n"
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, "short write")
        passing("decision.written")
        os.fsync(descriptor)
        passing("decision.synced")
        if size == 0:
            sync_folder(file.parent)
    except OSError as error:
        # A link that may or may not be there must not stay: the decision is refused.
        os.ftruncate(descriptor, size)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left to record the decision in {file.name}; nothing was decided"
            ) from error
        raise
    finally:
        os.close(descriptor)


def _cut_torn_line(file: Path) -> None:
    """Remove half a line that a crash left, so that the next link starts on its own."""
    try:
        with file.open("r+b") as opened:
            content = opened.read()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                opened.truncate(whole)
                passing("decision.cut")
                os.fsync(opened.fileno())
    except FileNotFoundError:
        return


def _read_line(file: Path, number: int, line: bytes) -> Decision:
    try:
        content: dict[str, Any] = json.loads(line)
        content["decided_at"] = datetime.fromisoformat(content["decided_at"])
        return Decision(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise DataDamaged(f"line {number} of {file.name} cannot be read") from error


def _as_json(link: Decision) -> dict[str, Any]:
    values = {field.name: getattr(link, field.name) for field in fields(link)}
    return values | {"decided_at": link.decided_at.isoformat()}


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(
        content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def _decisions(rows: Iterable[tuple[Any, ...]]) -> list[Decision]:
    names = [field.name for field in fields(Decision)]
    found = (dict(zip(names, row, strict=True)) for row in rows)
    return [Decision(**row | {"decided_at": from_db_time(row["decided_at"])}) for row in found]
