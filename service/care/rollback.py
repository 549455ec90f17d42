"""Rolls back while no learner runs, from the files that a learner starts from.

The decision is appended to the chain in the decision file, then `live.json` is replaced: in this
order, so that a death between the two is put right by the learner's next start. The database is
not opened, so it may be damaged.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipelines.decide import Chain, never_approved, required_reason, rollback_target
from pipelines.errors import ArtifactDamaged, DataDamaged, DataLocked, NotRunning, Refused
from pipelines.types import Decision, StudentVersion
from service.care.rebuild.versions import version_of
from service.host.process import lock_data_folder
from service.keys import open_keys
from service.operator.publish import live_task, next_serial, verify_servable
from service.settings import Settings
from storage.artifacts import Artifacts
from storage.decisions import read_file, record_in_file, verify_chain
from storage.folder import DataFolder
from storage.live import Live, LiveTask, read_live, write_live
from storage.reports import read_report

# A learner that dies again and again holds the lock for a moment each time.
LOCK_SECONDS = 10.0
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What serves again, by which decision."""

    name: str
    decision: Decision


def roll_back_offline(
    settings: Settings,
    task: str | None,
    to: int | None,
    *,
    reason: str,
    operator: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> RolledBack:
    """Serve a formerly approved version again; `to` None: the one approved before the champion.

    Holds the data folder's lock: a learner that starts meanwhile is refused and starts again
    after it, with the decision. Raises `Refused` and `ArtifactDamaged` as the learner would.
    """
    why = required_reason(reason, "roll back")
    with _lock(settings.data_dir):
        return _Offline(settings).roll_back(task, to, why, operator, now())


class _Offline:
    """The files of one data folder, under its lock."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.folder
        self._settings = settings
        self._file, self._live_path = folder.decisions, folder.live
        self._artifacts = Artifacts(folder.artifacts)
        self._links = read_file(self._file)
        verify_chain(self._links)
        token = settings.gateway.learner_token.get_secret_value()
        self._key = open_keys(settings.data_dir, token).live

    def roll_back(
        self, wanted: str | None, to: int | None, reason: str, operator: str, now: datetime
    ) -> RolledBack:
        task = self._task(wanted)
        version = self._target(task, to)
        report = Chain.of(task, self._links).approval_of(version.student).report
        verify_servable(self._artifacts, version, report)
        decision = record_in_file(
            self._file,
            task=task,
            action="rollback",
            student=version.student,
            report=report,
            operator=operator,
            reason=reason,
            now=now,
        )
        self._links.append(decision)
        self._publish()
        return RolledBack(name=f"{task}-v{version.number}", decision=decision)

    def _task(self, wanted: str | None) -> str:
        decided = sorted({link.task for link in self._links if link.action == "approve"})
        if wanted is not None and wanted not in self._settings.tasks:
            known = ", ".join(self._settings.tasks) or "none"
            raise Refused(f"there is no task {wanted}; the settings have: {known}")
        if wanted is not None:
            return wanted
        if not decided:
            raise Refused("nothing was ever approved; there is nothing to roll back")
        if len(decided) > 1:
            raise Refused(f"say which with --task: {', '.join(decided)}")
        return decided[0]

    def _target(self, task: str, to: int | None) -> StudentVersion:
        """As the learner would choose it, of what the artifacts still tell of."""
        chain = Chain.of(task, self._links)
        known = [found for one in chain.approved if (found := self._find(task, one))]
        if to is not None and chain.champion and to not in {one.number for one in known}:
            raise never_approved(f"{task}-v{to}")
        return rollback_target(chain, known, to)

    def _find(self, task: str, student: str) -> StudentVersion | None:
        """A version as its artifacts tell of it, without the database and unverified."""
        report = Chain.of(task, self._links).approval_of(student).report
        with suppress(ArtifactDamaged):
            content = read_report(self._artifacts, report or "")
            return version_of(self._artifacts.look("student", student), content)
        return None

    def _publish(self) -> None:
        """Other tasks stay as they are published; without a readable file all are made anew."""
        present = self._present()
        published = dict(present.tasks) if present else {}
        changed = self._links[-1].task
        published[changed] = self._live(changed)
        for task in self._settings.tasks.keys() - published.keys():
            with suppress(DataDamaged):  # that is its own trouble; the learner will say so
                published[task] = self._live(task)
        serial = next_serial(present, len(self._links))
        write_live(self._live_path, Live(serial=serial, tasks=published), self._key)

    def _live(self, task: str) -> LiveTask:
        return live_task(Chain.of(task, self._links), self._artifacts, self._find)

    def _present(self) -> Live | None:
        try:
            return read_live(self._live_path, self._key)
        except DataDamaged:
            return None


def _lock(data: Path) -> IO[str]:
    if not DataFolder(data).decisions.is_file():
        raise NotRunning(
            f"no learner answers, and {data} holds no decisions: give the same --config and "
            "--data-dir here as to the learner"
        )
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return lock_data_folder(data)
        except DataLocked as error:
            if time.monotonic() > deadline:
                raise DataLocked(
                    f"{error}. It does not answer: end that process and run this again"
                ) from error
        time.sleep(LOOK_SECONDS)
