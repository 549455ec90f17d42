"""Publication: what the decisions say is served becomes `live.json`."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock

import structlog
from msgspec import structs

from pipelines.decide import Chain
from pipelines.errors import ArtifactDamaged, DataDamaged
from pipelines.guard import Guard, threshold_in_force
from pipelines.types import StudentVersion
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from storage.artifacts import Artifacts
from storage.database import Database
from storage.decisions import decisions
from storage.guards import open_guards
from storage.live import Live, LiveStudent, LiveTask, read_live, write_live
from storage.reports import read_report
from storage.versions import version_by_digest

log = structlog.get_logger()

_ONE_AT_A_TIME = Lock()

FindVersion = Callable[[str, str], StudentVersion | None]  # by task and student


def publish(
    database: Database, artifacts: Artifacts, tasks: Iterable[str], path: Path, key: bytes
) -> Live | None:
    """Write `live.json` where it differs from the decisions; None when nothing had to change.

    Safe to repeat. A file that is damaged or signed with another key is replaced: the
    decisions are the truth. Raises `DataDamaged` when a champion cannot be served as it was
    approved; the old file then stays.
    """
    # An approval and the watch may want to at once: the second has nothing to do then.
    with _ONE_AT_A_TIME:
        present = _present(path, key)
        with database.snapshot() as tx:
            links = decisions(tx)

            def find(task: str, student: str) -> StudentVersion | None:
                return version_by_digest(tx, task, student)

            chains = [Chain.of(task, links) for task in sorted(tasks)]
            guards = open_guards(tx)
            wanted = {
                chain.task: _guarded(live_task(chain, artifacts, find), chain.task, guards)
                for chain in chains
            }
        if present is not None and present.serial > 0 and present.tasks == wanted:
            return None
        live = Live(serial=next_serial(present, len(links)), tasks=wanted)
        write_live(path, live, key)
        champions = {task: one.champion.name for task, one in wanted.items() if one.champion}
        log.info("live_published", serial=live.serial, champions=champions)
        return live


def show_published(live: Live, board: Board, metrics: LearnerMetrics) -> None:
    """What is served now, for the other parts and for Prometheus."""
    board.live = live.tasks
    metrics.student_info.clear()
    for task, one in live.tasks.items():
        for role, student in (("champion", one.champion), ("previous", one.previous)):
            if student is not None:
                labels = {"task": task, "version": student.name, "role": role}
                metrics.student_info.labels(**labels).set(1)


def next_serial(present: Live | None, decided: int) -> int:
    """One more than before. Behind a lost file the clock, and what was decided within its
    second: gateways refuse a lower serial than they have seen."""
    known = present.serial if present else 0
    return known + 1 if known else int(time.time()) + decided


def live_task(chain: Chain, artifacts: Artifacts, find: FindVersion) -> LiveTask:
    """The champion of a task, and the champion before it to keep resident."""
    if chain.champion is None:
        return LiveTask()
    return LiveTask(
        champion=_live_student(find, artifacts, chain, chain.champion),
        previous=_previous(find, artifacts, chain, chain.before) if chain.before else None,
    )


def _guarded(
    live: LiveTask, task: str, guards: Mapping[tuple[str, str], tuple[Guard, ...]]
) -> LiveTask:
    """With the champion's threshold as it is in force now."""
    champion = live.champion
    standing = guards.get((task, champion.student), ()) if champion else ()
    if champion is None or not standing:
        return live
    threshold = threshold_in_force(champion.threshold, standing)
    return structs.replace(live, champion=structs.replace(champion, threshold=threshold))


def _previous(
    find: FindVersion, artifacts: Artifacts, chain: Chain, student: str
) -> LiveStudent | None:
    try:
        return _live_student(find, artifacts, chain, student)
    except DataDamaged as error:
        log.warning("previous_not_published", student=student, error=str(error))
        return None


def _live_student(
    find: FindVersion, artifacts: Artifacts, chain: Chain, student: str
) -> LiveStudent:
    approval = chain.approval_of(student)
    version = find(chain.task, student)
    if version is None or approval.report is None:
        raise DataDamaged(
            f"student {student[:12]} of {chain.task} was approved in decision "
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
        near=report.evaluation.threshold.near,
        radius=report.evaluation.threshold.radius,
    )


def verify_servable(artifacts: Artifacts, version: StudentVersion, report: str | None) -> None:
    """Read a version byte by byte, as before an approval. Raises `ArtifactDamaged`."""
    artifacts.open("student", version.student)
    artifacts.open(version.base_kind, version.base)
    if report is None:
        raise ArtifactDamaged(f"{version.name} was approved without a report")
    content = read_report(artifacts, report)
    if content.student != version.student or not content.gate.promotable:
        raise ArtifactDamaged(
            f"report {report[:12]} does not say that {version.name} may be served"
        )


def _present(path: Path, key: bytes) -> Live | None:
    try:
        return read_live(path, key)
    except DataDamaged as error:
        log.warning("live_replaced", error=str(error))
        return None
