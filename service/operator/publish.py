"""Publication: what the decisions say is served becomes `live.json`."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from pipelines.errors import ArtifactDamaged, DataDamaged
from pipelines.types import Decision, StudentVersion
from storage.artifacts import Artifacts
from storage.database import Database
from storage.decisions import decisions
from storage.live import Live, LiveStudent, LiveTask, read_live, write_live
from storage.reports import read_report
from storage.versions import version_by_digest

log = structlog.get_logger()

FindVersion = Callable[[str, str], StudentVersion | None]  # by task and student


def publish(
    database: Database, artifacts: Artifacts, tasks: Iterable[str], path: Path, key: bytes
) -> Live | None:
    """Write `live.json` where it differs from the decisions; None when nothing had to change.

    Safe to repeat. A file that is damaged or signed with another key is replaced: the
    decisions are the truth. Raises `DataDamaged` when a champion cannot be served as it was
    approved; the old file then stays.
    """
    present = _present(path, key)
    with database.snapshot() as tx:
        links = decisions(tx)

        def find(task: str, student: str) -> StudentVersion | None:
            return version_by_digest(tx, task, student)

        wanted = {task: live_task(links, artifacts, find, task) for task in sorted(tasks)}
    if present is not None and present.serial > 0 and present.tasks == wanted:
        return None
    live = Live(serial=next_serial(present, len(links)), tasks=wanted)
    write_live(path, live, key)
    champions = {task: one.champion.name for task, one in wanted.items() if one.champion}
    log.info("live_published", serial=live.serial, champions=champions)
    return live


def next_serial(present: Live | None, decided: int) -> int:
    """One more than before. Behind a lost file the clock, and what was decided within its
    second: gateways refuse a lower serial than they have seen."""
    known = present.serial if present else 0
    return known + 1 if known else int(time.time()) + decided


def live_task(
    links: Sequence[Decision], artifacts: Artifacts, find: FindVersion, task: str
) -> LiveTask:
    """The champion of a task, and the champion before it to keep resident."""
    chain = [link for link in links if link.task == task and link.action != "reject"]
    if not chain:
        return LiveTask()
    champion = chain[-1].student
    before = next((link.student for link in reversed(chain) if link.student != champion), None)
    return LiveTask(
        champion=_live_student(find, artifacts, chain, champion),
        previous=_previous(find, artifacts, chain, before) if before else None,
    )


def _previous(
    find: FindVersion, artifacts: Artifacts, chain: list[Decision], student: str
) -> LiveStudent | None:
    try:
        return _live_student(find, artifacts, chain, student)
    except DataDamaged as error:
        log.warning("previous_not_published", student=student, error=str(error))
        return None


def _live_student(
    find: FindVersion, artifacts: Artifacts, chain: list[Decision], student: str
) -> LiveStudent:
    approval = approval_of(chain, student)
    version = find(approval.task, student)
    if version is None or approval.report is None:
        raise DataDamaged(
            f"student {student[:12]} of {approval.task} was approved in decision "
            f"{approval.sequence}, but the database does not know it: `flywheel rebuild`, or "
            "restore a backup"
        )
    report = read_report(artifacts, approval.report)
    if report.student != student:
        raise ArtifactDamaged(
            f"the report of decision {approval.sequence} is about another student"
        )
    return LiveStudent(
        name=version.name,
        number=version.number,
        student=student,
        family=version.family,
        base=version.base,
        report=approval.report,
        decision=approval.digest,
        threshold=report.evaluation.threshold.value,
    )


def approval_of(chain: list[Decision], student: str) -> Decision:
    """The latest approval of a student; what is live always has one."""
    for link in reversed(chain):
        if link.action == "approve" and link.student == student:
            return link
    raise DataDamaged(f"student {student[:12]} was made champion and never approved")


def _present(path: Path, key: bytes) -> Live | None:
    try:
        return read_live(path, key)
    except DataDamaged as error:
        log.warning("live_replaced", error=str(error))
        return None
