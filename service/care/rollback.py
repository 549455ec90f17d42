"""Rolls back while no learner runs, from the files that a learner starts from.

The decision is appended to the chain in the decision file, then `live.json` is replaced: in this
order, so that a death between the two is put right by the learner's next start. The database is
not opened, so it may be damaged.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipelines.errors import ArtifactDamaged, DataDamaged, DataLocked, NotRunning, Refused
from pipelines.types import Decision, StudentVersion
from service.care.rebuild.versions import version_of
from service.host.process import lock_data_folder
from service.keys import open_keys
from service.operator.operations import required_reason
from service.operator.publish import approval_of, live_task, next_serial
from service.settings import Settings
from storage.artifacts import Artifacts, base_kind
from storage.decisions import read_file, record_in_file, verify_chain
from storage.folder import DataFolder
from storage.live import Live, read_live, write_live
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
        report = approval_of(self._of(task), version.student).report
        self._verify(version, report)
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
        if wanted is not None and wanted not in decided:
            raise Refused(f"{wanted} has no champion yet; there is nothing to roll back")
        if wanted is not None:
            return wanted
        if not decided:
            raise Refused("nothing was ever approved; there is nothing to roll back")
        if len(decided) > 1:
            raise Refused(f"say which with --task: {', '.join(decided)}")
        return decided[0]

    def _target(self, task: str, to: int | None) -> StudentVersion:
        chain = self._of(task)
        served = [link.student for link in chain if link.action != "reject"]
        approved = [link.student for link in chain if link.action == "approve"]
        champion = served[-1]
        if to is None:
            return self._before(task, approved, champion)
        for student in dict.fromkeys(approved):
            if self._number(task, student) == to:
                version = self._find(task, student)
                if student == champion:
                    raise Refused(f"{version.name} is the champion already")
                return version
        raise Refused(
            f"{task}-v{to} was never approved; a rollback goes only to a version that an operator "
            "approved once"
        )

    def _before(self, task: str, approved: Sequence[str], champion: str) -> StudentVersion:
        earlier = approved[: approved.index(champion)]
        if not earlier:
            raise Refused(f"{task} has no version that was approved before the champion")
        return self._find(task, earlier[-1])

    def _number(self, task: str, student: str) -> int | None:
        report = approval_of(self._of(task), student).report
        with suppress(ArtifactDamaged):
            return read_report(self._artifacts, report or "").number
        return None

    def _find(self, task: str, student: str) -> StudentVersion:
        """A version as its artifacts tell of it, without the database."""
        report = approval_of(self._of(task), student).report
        content = read_report(self._artifacts, report or "")
        return version_of(self._artifacts.open("student", student), content)

    def _verify(self, version: StudentVersion, report: str | None) -> None:
        """Byte by byte, as before an approval."""
        self._artifacts.open("student", version.student)
        self._artifacts.open(base_kind(version.family), version.base)
        content = read_report(self._artifacts, report or "")
        if content.student != version.student or not content.gate.promotable:
            raise ArtifactDamaged(
                f"the report of {version.name} does not say that it may be served"
            )

    def _publish(self) -> None:
        """Other tasks stay as they are published; without a readable file all are made anew."""
        present = self._present()
        published = dict(present.tasks) if present else {}
        changed = self._links[-1].task
        published[changed] = live_task(self._links, self._artifacts, self._find, changed)
        for task in self._settings.tasks.keys() - published.keys():
            with suppress(DataDamaged):  # that is its own trouble; the learner will say so
                published[task] = live_task(self._links, self._artifacts, self._find, task)
        serial = next_serial(present, len(self._links))
        write_live(self._live_path, Live(serial=serial, tasks=published), self._key)

    def _present(self) -> Live | None:
        try:
            return read_live(self._live_path, self._key)
        except DataDamaged:
            return None

    def _of(self, task: str) -> list[Decision]:
        return [link for link in self._links if link.task == task]


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
