"""The ledger: an append-only, checksummed, fsynced record of every paid teacher call.

`intent` is on disk before a call is sent, `received` before anything uses the answer. Lines
hold keys, hashes and amounts; requests and replies lie in a side store, where the erasure of
a user can reach them. Nothing here is ever edited.
"""

import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from pipelines.errors import DataDamaged, DiskFull
from storage.durable import sync_folder
from storage.failpoints import passing

Step = Literal["intent", "received", "not_sent", "unknown", "released", "dropped"]
FILE = "ledger.jsonl"
BODIES = "bodies.sqlite"

# Where a call can be, and the steps that lead on from there.
NEXT: dict[str, frozenset[Step]] = {
    "": frozenset({"intent"}),
    "intent": frozenset({"received", "not_sent", "unknown"}),
    "not_sent": frozenset({"intent"}),
    "unknown": frozenset({"released", "dropped", "received"}),
    "released": frozenset({"intent"}),
    "dropped": frozenset(),
    "received": frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What a call may cost (`intent`: an upper bound) or did cost (`received`)."""

    tokens: int = 0
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The latest step of one call, by its key."""

    key: str
    step: Step
    event_id: str
    at: datetime
    reserved: Amounts
    spent: Amounts
    attempts: int  # how often an intent was written
    detail: str = ""
    reply_digest: str = ""  # SHA-256 of the reply, once received
    repeat: int = 0  # 0: the label of its event; else the same question, asked again on purpose


@dataclass(slots=True, kw_only=True)
class DaySpend:
    """Calls, tokens and money of one UTC day: settled where known, else as reserved."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0


class Ledger:
    """The open ledger of one data folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / FILE
        self._lock = RLock()
        self._calls: dict[str, Call] = {}
        self._days: dict[str, DaySpend] = {}
        for line in _read_lines(self._path):
            self._remember(line)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sync_folder(folder)
        self._bodies = _open_bodies(folder / BODIES)

    def call(self, key: str) -> Call | None:
        """The latest step of a call."""
        return self._calls.get(key)

    def spent_on(self, moment: datetime) -> DaySpend:
        """What the UTC day of `moment` has cost, calls in flight and unknown ones included."""
        with self._lock:
            return self._days.setdefault(_day(moment), DaySpend())

    def intend(
        self,
        key: str,
        *,
        event_id: str,
        request: bytes,
        reserve: Amounts,
        now: datetime,
        repeat: int = 0,
    ) -> None:
        """On disk before the call is sent. Raises `ValueError` for a call that may not be sent."""
        about = {"event_id": event_id, **({"repeat": repeat} if repeat else {})}
        with self._lock:
            self._keep_body(key, "request", request)
            self._append(key, "intent", now, about=about, amounts=reserve, body=request)

    def receive(self, key: str, *, reply: bytes, spent: Amounts, now: datetime) -> None:
        """On disk before the answer is used; from here on it is never bought again."""
        with self._lock:
            self._keep_body(key, "reply", reply)
            self._append(key, "received", now, amounts=spent, body=reply)

    def note(self, key: str, step: Step, *, detail: str, now: datetime) -> None:
        """Record that a call was not sent, has an unknown outcome, or was released or dropped."""
        with self._lock:
            self._append(key, step, now, detail=detail)

    def reply(self, key: str) -> bytes:
        """The reply of a received call. Raises `DataDamaged` when the side store lost it."""
        with self._lock:
            row = self._bodies.execute("SELECT reply FROM bodies WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] is None:
            raise DataDamaged(f"the reply of call {key[:12]} is missing from {BODIES}")
        body = row[0]
        known = self._calls[key].reply_digest
        if not isinstance(body, bytes) or sha256(body).hexdigest() != known:
            raise DataDamaged(f"the reply of call {key[:12]} in {BODIES} was changed")
        return body

    def request(self, key: str) -> bytes | None:
        """What was asked; None where the side store has lost or erased it."""
        with self._lock:
            found = self._bodies.execute("SELECT request FROM bodies WHERE key = ?", (key,))
            row = found.fetchone()
        return row[0] if row is not None and isinstance(row[0], bytes) else None

    def unknown(self) -> list[Call]:
        """Calls whose outcome nobody knows, oldest first. Held until an operator decides."""
        with self._lock:
            return [call for call in self._calls.values() if call.step == "unknown"]

    def unfinished(self) -> list[Call]:
        """Calls that were intended and nothing more: what a crash leaves behind."""
        with self._lock:
            return [call for call in self._calls.values() if call.step == "intent"]

    def calls(self) -> list[Call]:
        """Every call, in the order of their first intents."""
        with self._lock:
            return list(self._calls.values())

    def count(self) -> int:
        return len(self._calls)

    def verify(self) -> None:
        """Every received reply is there, and is the one that was received; else `DataDamaged`."""
        for call in self.calls():
            if call.step == "received":
                self.reply(call.key)

    def close(self) -> None:
        with self._lock:
            os.close(self._file)
            self._bodies.close()

    def _append(
        self,
        key: str,
        step: Step,
        now: datetime,
        *,
        about: Mapping[str, Any] | None = None,
        amounts: Amounts | None = None,
        detail: str = "",
        body: bytes = b"",
    ) -> None:
        before = self._calls.get(key)
        if step not in NEXT[before.step if before else ""]:
            raise ValueError(f"call {key[:12]} is {before.step if before else 'new'}, not {step}")
        line: dict[str, Any] = {"key": key, "step": step, "at": now.isoformat(), **(about or {})}
        if amounts is not None:
            line |= {"tokens": amounts.tokens, "money": amounts.money}
        if body:
            line["sha256"] = sha256(body).hexdigest()
        if detail:
            line["detail"] = detail
        self._write(_encode(line))
        self._remember(line)

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            passing("ledger.written")
            os.fsync(self._file)
            passing("ledger.synced")
        except OSError as error:
            # Half a line would spoil the next one.
            os.ftruncate(self._file, end)
            raise DiskFull(
                f"the ledger cannot be written ({error.strerror}); no teacher call is made "
                "until there is space"
            ) from error

    def _keep_body(self, key: str, column: Literal["request", "reply"], body: bytes) -> None:
        try:
            with self._bodies:
                self._bodies.execute(
                    f"INSERT INTO bodies (key, {column}) VALUES (?, ?) "
                    f"ON CONFLICT DO UPDATE SET {column} = excluded.{column}",
                    (key, body),
                )
                passing("ledger.body_written")
            passing("ledger.body_kept")
        except sqlite3.OperationalError as error:
            raise DiskFull(
                f"{BODIES} cannot be written ({error}); no teacher call is made until it can"
            ) from error

    def _remember(self, line: dict[str, Any]) -> None:
        key, step, at = line["key"], line["step"], datetime.fromisoformat(line["at"])
        before = self._calls.get(key)
        amounts = Amounts(tokens=line.get("tokens", 0), money=line.get("money", 0.0))
        call = Call(
            key=key,
            step=step,
            event_id=line.get("event_id") or (before.event_id if before else ""),
            at=before.at if before and step != "intent" else at,
            reserved=amounts if step == "intent" or before is None else before.reserved,
            spent=amounts if step == "received" else Amounts(),
            attempts=(before.attempts if before else 0) + (step == "intent"),
            detail=line.get("detail", ""),
            reply_digest=line.get("sha256", "") if step == "received" else "",
            repeat=line.get("repeat", before.repeat if before else 0),
        )
        self._calls[key] = call
        self._settle(call)

    def _settle(self, call: Call) -> None:
        """Count a call to the day of its intent: as reserved until its cost is known."""
        day = self._days.setdefault(_day(call.at), DaySpend())
        if call.step == "intent":
            day.calls += 1
            day.tokens += call.reserved.tokens
            day.money += call.reserved.money
        elif call.step == "received":
            day.tokens += call.spent.tokens - call.reserved.tokens
            day.money += call.spent.money - call.reserved.money
        elif call.step == "not_sent":
            day.calls -= 1
            day.tokens -= call.reserved.tokens
            day.money -= call.reserved.money


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCheck:
    """What the files of a ledger hold, looked at without changing them."""

    lines: int
    received: int
    damaged_replies: int
    unknown: int
    torn: bool  # half a line at the end
    last: list[datetime]  # the time of the last line, if there is one


def check_ledger(folder: Path) -> LedgerCheck:
    """Read a ledger that another process may hold. Raises `DataDamaged` for a changed line."""
    path = folder / FILE
    lines = list(_read_lines(path, repair=False))
    steps = {line["key"]: line for line in lines}
    received = {key: line for key, line in steps.items() if line["step"] == "received"}
    digests = _reply_digests(folder / BODIES) if received else {}
    return LedgerCheck(
        lines=len(lines),
        received=len(received),
        damaged_replies=sum(
            digests.get(key) != line.get("sha256") for key, line in received.items()
        ),
        unknown=sum(line["step"] == "unknown" for line in steps.values()),
        torn=path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0,
        last=[datetime.fromisoformat(lines[-1]["at"])] if lines else [],
    )


def _reply_digests(path: Path) -> dict[str, str]:
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        try:
            rows = connection.execute("SELECT key, reply FROM bodies WHERE reply IS NOT NULL")
            return {key: sha256(reply).hexdigest() for key, reply in rows}
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise DataDamaged(f"{path} cannot be read: {error}. Restore it from a backup") from error


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()


def _open_bodies(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS bodies (key TEXT PRIMARY KEY, request BLOB, reply BLOB)"
        )
        connection.commit()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DataDamaged(f"{path} cannot be read: {error}. Restore it from a backup") from error
    return connection


def _encode(line: dict[str, Any]) -> bytes:
    content = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _read_lines(path: Path, *, repair: bool = True) -> Iterator[dict[str, Any]]:
    """All sound lines. A torn last line was never acknowledged; to `repair` cuts it off."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if repair and whole < len(content):
        os.truncate(path, whole)
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        checksum, _, body = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(body):
            raise DataDamaged(
                f"line {number} of {path} does not match its checksum: the record of paid calls "
                "was changed. Restore it from a backup before labels are bought again"
            )
        yield json.loads(body)
