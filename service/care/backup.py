"""`flywheel backup`: all that cannot be rebuilt, as one consistent state, taken while it runs.

The database's state comes first, and with it the length of the decision file; what follows may
only be ahead of it: ledger lines (then the replies they speak of), artifacts, the topic. Such a
folder is what a crash leaves, and the learner starts from it.
"""

import hmac
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.errors import DataLocked, Refused
from service.host.process import lock_data_folder
from service.settings import Settings
from storage.artifacts import KINDS, MANIFEST, Artifacts, Kind, hash_file
from storage.bundle import BundleWriter, Manifest, copy_sqlite
from storage.database import Database
from storage.dump import Frozen, freeze, read_frozen
from storage.folder import ARTIFACTS, DECISIONS, INTERNAL_KEY, LEDGER, LIVE, TOPIC
from storage.ledger import BODIES
from storage.ledger import FILE as LEDGER_FILE

TABLES = "tables"

Say = Callable[[str], None]


def freeze_here_or_there(
    settings: Settings, ask_learner: Callable[[], Mapping[str, Any]]
) -> Frozen:
    """By the learner that holds the data folder; by us, under its lock, where none does."""
    if not (settings.folder.database).is_file():
        raise Refused(f"there is no database in {settings.data_dir}: nothing to back up")
    try:
        lock = lock_data_folder(settings.data_dir)
    except DataLocked:
        return read_frozen(ask_learner())
    with lock:
        database = Database(settings.folder.database)
        try:
            return freeze(database, settings.folder, settings.ingest.min_free_disk_mb)
        finally:
            database.close()


def write_backup(
    settings: Settings, target: Path, frozen: Frozen, *, secrets: bool, say: Say
) -> Manifest:
    """Everything into `target`: a `.tar` file, else a folder. Whole or absent."""
    writer = None
    try:
        writer = BundleWriter(target)
        backup = _Backup(settings, frozen, writer, say)
        backup.records()
        backup.topic()
        backup.artifacts()
        backup.served(secrets)
        say("the last bytes are written to disk")
        return writer.finish(backup.about(secrets))
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    finally:
        shutil.rmtree(frozen.folder, ignore_errors=True)


class _Backup:
    """One backup while it is made."""

    def __init__(self, settings: Settings, frozen: Frozen, writer: BundleWriter, say: Say) -> None:
        self._settings = settings
        self._data = settings.data_dir
        self._frozen = frozen
        self._writer = writer
        self._say = say
        self._left_out: list[str] = []
        self._calls = 0

    def records(self) -> None:
        """Tables, decisions, ledger and replies, in the order that a restore relies on."""
        for name in self._frozen.dump.rows:
            self._add(f"{TABLES}/{name}.parquet", Path(self._frozen.folder) / f"{name}.parquet")
        if self._frozen.decisions_bytes:
            self._add(DECISIONS, self._data / DECISIONS, size=self._frozen.decisions_bytes)
        lines = self._data / LEDGER / LEDGER_FILE
        if lines.is_file():
            whole, self._calls = _whole_lines(lines)
            self._add(f"{LEDGER}/{LEDGER_FILE}", lines, size=whole)
        self._add_sqlite(f"{LEDGER}/{BODIES}", self._data / LEDGER / BODIES)

    def topic(self) -> None:
        """The embedded topic has no other copy; a broker keeps its own."""
        if not self._settings.kafka.bootstrap_servers:
            self._add_sqlite(TOPIC, self._data / TOPIC)

    def artifacts(self) -> None:
        """Every artifact that is what its name says; others are named and left out."""
        artifacts = Artifacts(self._data / ARTIFACTS)
        for kind in KINDS:
            for digest in artifacts.digests(kind):
                self._artifact(artifacts.path(kind, digest), kind, digest)

    def served(self, secrets: bool) -> None:
        """What gateways obey, and the key that signs it."""
        live = self._data / LIVE
        if live.is_file():
            self._add(LIVE, live)
        if secrets and (self._data / INTERNAL_KEY).is_file():
            self._add(INTERNAL_KEY, self._data / INTERNAL_KEY)

    def about(self, secrets: bool) -> dict[str, Any]:
        return {
            "program": f"flywheel {version('flywheel')}",
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "dump": asdict(self._frozen.dump),
            "offsets": self._frozen.offsets,
            "champions": self._frozen.champions,
            "calls": self._calls,
            "key": fingerprint(self._data, self._settings),
            "secrets": secrets,
            "left_out": self._left_out,
        }

    def _artifact(self, folder: Path, kind: Kind, digest: str) -> None:
        """Verified while it is copied. The manifest first, while retention may be at work."""
        try:
            content = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return  # half published, or just pruned
        problem = self._damage(folder, content, digest)
        if problem:
            self._left_out.append(f"{kind} {digest[:12]}: {problem}")
            return
        with suppress(FileNotFoundError):  # pruned meanwhile: nothing refers to it any more
            for name in [*json.loads(content)["files"], MANIFEST]:
                self._add(f"{ARTIFACTS}/{kind}/{digest}/{name}", folder / name)

    def _damage(self, folder: Path, manifest: bytes, digest: str) -> str | None:
        try:
            if sha256(manifest).hexdigest() != digest:
                return "its manifest was changed"
            for name, known in json.loads(manifest)["files"].items():
                if hash_file(folder / name) != known["sha256"]:
                    return f"{name} was changed"
        except (OSError, ValueError, KeyError) as error:
            return f"it cannot be read ({type(error).__name__})"
        return None

    def _add(self, name: str, source: Path, *, size: int | None = None) -> None:
        self._say(f"{self._writer.written // 2**20:,} MB  {name}")
        self._writer.add(name, source, size=size)

    def _add_sqlite(self, name: str, source: Path) -> None:
        if not source.is_file():
            return
        copy = self._writer.staged / source.name
        self._say(f"{self._writer.written // 2**20:,} MB  {name}")
        copy_sqlite(source, copy)
        self._writer.add(name, copy)
        copy.unlink()


def fingerprint(data_dir: Path, settings: Settings) -> str:
    """Tells one internal key from another, and nothing about it; empty where there is none."""
    key = settings.gateway.learner_token.get_secret_value()
    if not key:
        with suppress(OSError):
            key = (data_dir / INTERNAL_KEY).read_text().strip()
    return hmac.new(key.encode(), b"flywheel-backup", sha256).hexdigest()[:16] if key else ""


def _whole_lines(path: Path) -> tuple[int, int]:
    """The bytes up to the last whole line, and the calls in them."""
    size = calls = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                size += len(line)
                calls += b'"step":"intent"' in line
    return size, calls
