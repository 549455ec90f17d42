"""`flywheel rebuild`: the database made anew from topic, ledger, artifacts and decision file.

The new file is made beside the old one and takes its place in one step at the end. The old one
is kept.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.curate import NearDuplicates
from pipelines.decide import Chain
from pipelines.errors import Refused
from pipelines.types import Decision
from service.care.rebuild.known import calls_by_event, known_items
from service.care.rebuild.labels import Answers
from service.care.rebuild.replay import Replay
from service.care.rebuild.versions import Found, add_versions, look_at
from service.host.process import lock_data_folder
from service.keys import open_keys
from service.learner.teacher import Teacher
from service.rules import first_policy, intake_rules, wanted_in_cold_start
from service.settings import Settings
from service.topics import TopicReader
from service.topics.opening import open_reader
from storage.artifacts import Artifacts
from storage.database import Cursor, Database, noted_commits, row_counts, set_commits
from storage.decisions import decisions, reconcile
from storage.durable import sync_folder, write_durably
from storage.folder import DATABASE, DataFolder
from storage.leases import Lease, put_lease
from storage.ledger import Ledger
from storage.migrate import migrate

MEMORY_MB = 512
# So far above the old file's count that the side file is right before and after the exchange.
COMMITS_AHEAD = 1_000_000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What the new database holds, and sentences about what could not come back."""

    counts: Mapping[str, int]
    lost: tuple[str, ...]
    kept: str  # where the old database is


def rebuild(settings: Settings, say: Say, *, now: Callable[[], datetime] | None = None) -> Rebuilt:
    """Replace the database of the settings' data folder. The learner must not run."""
    data = settings.data_dir
    moment = (now or (lambda: datetime.now(UTC)))()
    _refuse_empty(settings)
    with lock_data_folder(data):
        folder = settings.folder.rebuilding
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        database = Database(folder / DATABASE, memory_mb=MEMORY_MB)
        try:
            migrate(database)
            counts, lost = _Rebuild(settings, database, moment, say).run()
            with database.transaction() as tx:
                set_commits(tx, noted_commits(data / DATABASE) + COMMITS_AHEAD)
            database.checkpoint()
        finally:
            database.close()
        kept = _exchange(data, folder, moment)
    return Rebuilt(counts=counts, lost=tuple(lost), kept=str(kept) if kept else "")


class _Rebuild:
    """One rebuild while it runs."""

    def __init__(self, settings: Settings, database: Database, moment: datetime, say: Say) -> None:
        self._settings = settings
        self._database = database
        self._moment = moment
        self._say = say
        self._keys = open_keys(settings.data_dir, settings.gateway.learner_token.get_secret_value())
        self._tasks = {name: settings.task_of(name) for name in settings.tasks}

    def run(self) -> tuple[Mapping[str, int], list[str]]:
        folder = self._settings.folder
        self._say("decisions and artifacts are read")
        links = reconcile(self._database, folder.decisions)
        found = look_at(Artifacts(folder.artifacts))
        with self._database.transaction() as tx:
            stored = add_versions(tx, found, decisions(tx))
        with (
            closing(Ledger(folder.ledger)) as ledger,
            closing(open_reader(self._settings)) as reader,
        ):
            replay, first = self._replay(found, links, ledger, reader)
        with self._database.transaction() as tx:
            self._add_escalations(tx, replay)
        with self._database.snapshot() as tx:
            rows = row_counts(tx, ("samples", "labels"))
        counts = {"decisions": len(links), **stored, **replay.counts, **rows}
        return counts, list(_lost(counts, first, found))

    def _replay(
        self, found: Found, links: Sequence[Decision], ledger: Ledger, reader: TopicReader
    ) -> tuple[Replay, Mapping[int, int]]:
        settings = self._settings
        teacher = Teacher(settings.teacher, settings.budget, ledger)
        replay = Replay(
            rules=intake_rules(settings, self._keys),
            policies={name: first_policy(settings, self._keys.sampling) for name in self._tasks},
            cold_start_labels={
                name: wanted_in_cold_start(settings, task) for name, task in self._tasks.items()
            },
            items=known_items(found.datasets),
            calls=calls_by_event(ledger),
            groups={name: NearDuplicates(self._keys.sampling) for name in self._tasks},
            first_champions=_first_champions(links),
        )
        with self._database.transaction() as tx:
            replay.seed(tx)
        replay.read(reader, self._database, self._say)
        self._say("labels are taken from the ledger")
        Answers(
            database=self._database,
            ledger=ledger,
            teacher=teacher,
            terms=settings.teacher.terms,
            replay=replay,
        ).bring_back()
        return replay, replay.first_offsets

    def _add_escalations(self, tx: Cursor, replay: Replay) -> None:
        """What the topic tells of today's escalations counts against today's budget."""
        today = self._moment.replace(hour=0, minute=0, second=0, microsecond=0)
        spent = replay.escalations.get(today)
        if not spent:
            return
        put_lease(
            tx,
            Lease(
                lease_id=f"rebuilt-{today.date()}",
                gateway="rebuilt from the topic",
                day=today.date(),
                granted_at=self._moment,
                expires_at=self._moment,
                calls=len(spent),
                money=sum(spent),
                spent_calls=len(spent),
                spent_money=sum(spent),
                settled=True,
            ),
        )


def _first_champions(links: Sequence[Decision]) -> dict[str, datetime]:
    """Since when each task has had a champion."""
    chains = [Chain.of(task, links) for task in {link.task for link in links}]
    return {chain.task: chain.reigns[0].decided_at for chain in chains if chain.reigns}


def _refuse_empty(settings: Settings) -> None:
    """Without the key nothing on the topic is signed for us, and no draw comes out as it did."""
    key = settings.folder.internal_key
    if not settings.gateway.learner_token.get_secret_value() and not key.is_file():
        raise Refused(
            f"there is no {key}: without the installation's key the topic cannot be read as it "
            "was. Restore a backup, or put the key back"
        )
    if not settings.tasks:
        raise Refused("the settings have no task; rebuild with those that the learner runs with")


def _exchange(data: Path, folder: Path, moment: datetime) -> Path | None:
    """The new file in the old one's place. Whatever dies when, the learner starts from the old
    one, from the new one, or says that the database was cut and names this verb."""
    kept: Path | None = None
    new, old = folder / DATABASE, data / DATABASE
    counter = old.with_suffix(".commits")
    if not counter.exists():  # it must tell an empty database from a lost one
        write_durably(counter, new.with_suffix(".commits").read_bytes())
    present = [path for path in (old.with_name(f"{old.name}.wal"), old) if path.exists()]
    if present:
        kept = DataFolder(data).kept_database(f"{moment:%Y%m%dT%H%M%S}")
        kept.mkdir(mode=0o700)
        shutil.copyfile(counter, kept / counter.name)
        for path in present:  # the log first: it must never meet the new file
            path.rename(kept / path.name)
        sync_folder(kept)
    os.replace(new, old)
    sync_folder(data)
    os.replace(new.with_suffix(".commits"), counter)
    shutil.rmtree(folder)
    sync_folder(data)
    return kept


def _lost(counts: Mapping[str, int], first: Mapping[int, int], found: Found) -> Iterator[str]:
    """What could not come back, each with its number."""
    gone = sum(first.values())
    if gone:
        yield (
            f"{gone:,} records are no longer on the topic: traffic sums begin after them, and of "
            "their samples only those come back that the ledger or a dataset knows"
        )
    if count := counts.get("samples_from_datasets", 0) + counts.get("samples_from_ledger", 0):
        yield (
            f"{count:,} samples came back without their record: who wrote them, what the student "
            "had said and by which draw they were chosen is not known"
        )
    if count := counts.get("unassessed", 0):
        yield (
            f"{count:,} events came without a student's answer, and what a gateway said to them "
            "when they were read is not known: coverage and agreement go without them"
        )
    if count := counts.get("calls_of_other_questions", 0):
        yield (
            f"{count:,} paid answers belong to questions that no task of the settings asks; they "
            "stay in the ledger"
        )
    if count := counts.get("replies_missing", 0):
        yield f"{count:,} paid answers are missing from the side store; their samples wait"
    if count := counts.get("left_out", 0):
        yield (
            f"{count:,} events that the learning draw may have chosen, and that nobody was asked "
            "about, are not samples any more"
        )
    if count := counts.get("versions_missing", 0):
        yield f"{count:,} version numbers belong to students that retention had removed"
    if count := counts.get("versions_of_unknown_number", 0):
        yield f"{count:,} versions were never judged; they have the next free numbers"
    if count := counts.get("dead_letters", 0):
        yield f"{count:,} dead letters are listed again, replayed ones too"
    yield from (f"left out: {problem}" for problem in found.problems)
    yield (
        "pauses, the ticks of jobs, failed trainings, the charts' history and evaluations whose "
        "report is gone were only in the database"
    )
