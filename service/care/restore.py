"""`flywheel restore`: a backup back into an empty data folder, verified before and after."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ArtifactDamaged, DataDamaged, Refused
from service.care.backup import TABLES, fingerprint
from service.host.process import lock_empty_folder
from service.keys import open_keys
from service.operator.publish import next_serial
from service.settings import Settings
from storage.artifacts import KINDS, Artifacts
from storage.bundle import BundleReader
from storage.database import Database
from storage.decisions import read_file, verify_chain
from storage.dump import Dump, load
from storage.durable import sync_folder, write_durably
from storage.folder import (
    ARTIFACTS,
    DATABASE,
    DECISIONS,
    LEDGER,
    LIVE,
    RESTORING,
    RUN,
    SECRETS,
    STAGED,
)
from storage.ledger import Ledger
from storage.live import Live, read_live, write_live

# What may be in a folder that is as good as empty.
NOTHING = frozenset({RUN, "lost+found"})
MEMORY_MB = 512

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What is there again. `notes`: sentences that a person should read."""

    made_at: str
    rows: int
    decisions: int
    calls: int
    unfinished_calls: int
    artifacts: int
    champions: dict[str, str]
    notes: tuple[str, ...]


def check_backup(path: Path, say: Say) -> BundleReader:
    """Read every byte of a backup and compare it with its manifest."""
    reader = BundleReader(path)
    total = max(1, reader.size)
    reader.verify(lambda name, done: say(f"checked {done * 100 // total} %  {name}"))
    return reader


def restore(settings: Settings, path: Path, say: Say) -> Restored:
    """Fill the settings' data folder, which must be empty. Cut short, it can be started again."""
    data = settings.data_dir
    _refuse_full(data)
    reader = check_backup(path, say)
    _refuse_other_key(reader, settings)
    data.mkdir(parents=True, exist_ok=True)
    with lock_empty_folder(data):
        _clear(data)
        write_durably(data / RESTORING, b"`flywheel restore` was at work here.\n")
        sync_folder(data.parent)
        total = max(1, reader.size)
        staged = data / STAGED
        reader.extract(staged, lambda name, done: say(f"restored {done * 100 // total} %  {name}"))
        say("the database is made")
        dumped = Dump(**reader.manifest.about["dump"])
        _make_database(data / DATABASE, staged / TABLES, dumped)
        _move(staged, data)
        restored = _verify(settings, reader, dumped, say)
        _sync_all(data)
        (data / RESTORING).unlink()
        sync_folder(data)
    return restored


def _refuse_full(data: Path) -> None:
    if not data.exists():
        return
    present = {path.name for path in data.iterdir()} - NOTHING
    if present and RESTORING not in present:
        raise Refused(
            f"{data} is not empty ({min(present)} is in it): a restore goes into an empty folder. "
            "Move it away, or name another with --data-dir"
        )


def _refuse_other_key(reader: BundleReader, settings: Settings) -> None:
    """A key in the settings would be used instead: then nothing that was signed would hold."""
    known = reader.manifest.about.get("key", "")
    token = settings.gateway.learner_token.get_secret_value()
    if token and known and fingerprint(settings.data_dir, settings) != known:
        raise Refused(
            "gateway.learner_token of the settings is not the key that this backup was made with; "
            "records on the topic and gateways elsewhere know the old one"
        )


def _clear(data: Path) -> None:
    """What an interrupted restore has left."""
    for path in data.iterdir():
        if path.name in NOTHING or path.name == RESTORING:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make_database(path: Path, tables: Path, dumped: Dump) -> None:
    database = Database(path, memory_mb=MEMORY_MB)
    try:
        load(database, tables, dumped)
        database.checkpoint()
    finally:
        database.close()


def _move(staged: Path, data: Path) -> None:
    shutil.rmtree(staged / TABLES)
    for path in sorted(staged.iterdir()):
        path.rename(data / path.name)
    staged.rmdir()
    for folder in (SECRETS, LEDGER):
        if (data / folder).is_dir():
            (data / folder).chmod(0o700)


def _verify(settings: Settings, reader: BundleReader, dumped: Dump, say: Say) -> Restored:
    """Every chain, checksum and reply, as the learner will meet them."""
    data, about = settings.data_dir, reader.manifest.about
    decisions = read_file(data / DECISIONS)
    verify_chain(decisions)
    with closing(Ledger(data / LEDGER)) as ledger:
        ledger.verify()
        calls, unfinished = ledger.count(), len(ledger.unfinished())
    artifacts, damaged = 0, []
    store = Artifacts(data / ARTIFACTS)
    for kind in KINDS:
        for digest in store.digests(kind):
            say(f"verified {kind} {digest[:12]}")
            try:
                store.open(kind, digest)
                artifacts += 1
            except ArtifactDamaged as error:
                damaged.append(str(error))
    notes = [
        *(f"left out of the backup: {one}" for one in about.get("left_out", ())),
        *damaged,
        *_publish_anew(settings, about, len(decisions)),
        *_about_calls(unfinished),
    ]
    return Restored(
        made_at=about["made_at"],
        rows=sum(dumped.rows.values()),
        decisions=len(decisions),
        calls=calls,
        unfinished_calls=unfinished,
        artifacts=artifacts,
        champions=dict(about["champions"]),
        notes=tuple(notes),
    )


def _publish_anew(settings: Settings, about: dict[str, Any], decided: int) -> Iterator[str]:
    """`live.json` under a serial that no gateway has seen: an older one it would refuse."""
    path = settings.data_dir / LIVE
    known = about.get("key", "")
    if known and fingerprint(settings.data_dir, settings) != known:
        path.unlink(missing_ok=True)
        yield (
            "the backup holds no secrets: the learner makes a new internal key at its start and "
            "publishes then. Records that gateways signed with the old key are dead letters, and "
            "gateways elsewhere need the new key"
        )
        return
    if not path.exists():
        return
    key = open_keys(settings.data_dir, settings.gateway.learner_token.get_secret_value()).live
    try:
        live = read_live(path, key)
    except DataDamaged:
        path.unlink()
        yield "live.json was not signed with this key; the learner publishes anew at its start"
        return
    serial = max(live.serial + 1, next_serial(None, decided))
    write_live(path, Live(serial=serial, tasks=live.tasks), key)


def _about_calls(unfinished: int) -> Iterator[str]:
    if unfinished:
        yield (
            f"{unfinished} teacher calls were under way when the backup was made; their outcome "
            "is unknown, and they are held: `flywheel unknown list`"
        )


def _sync_all(data: Path) -> None:
    for folder in [data, *(path for path in data.rglob("*") if path.is_dir())]:
        sync_folder(folder)
