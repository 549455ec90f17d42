"""Everything an operator can do. The console, the API and the command line only call this."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import structlog

from pipelines.errors import ArtifactDamaged, DataDamaged, DiskFull, FlywheelError, Refused
from pipelines.types import DeadLetter, Decision, DecisionAction, StudentVersion
from service.keys import Keys
from service.operator.overview import Overview
from service.operator.publish import approval_of, publish
from service.operator.status import (
    Activity,
    ActivityKind,
    Callbacks,
    Reign,
    Status,
    UnknownOutcome,
    Version,
    VersionDetail,
)
from service.operator.versions import History, load_history
from service.settings import Settings
from storage.artifacts import Artifacts, base_kind
from storage.database import Cursor, Database
from storage.dead_letters import dead_letter, dead_letters, mark_replayed
from storage.decisions import decisions, read_file, reconcile, record_decision
from storage.dump import Frozen, freeze
from storage.live import Live
from storage.reports import read_card, read_report
from storage.ticks import ALL_JOBS, Tick, is_paused, pause, recent_ticks, resume
from storage.traffic import all_offsets

log = structlog.get_logger()

AUTOMATIC = "flywheel"  # the operator's name in decisions that nobody took
REPLAY_TIMEOUT_SECONDS = 10.0


class Operations:
    """An operator's view of, and hand on, one learner. Safe to use from several threads.

    Decisions are made inside one write transaction, so of two operators who decide at the
    same time the second meets what the first has done.
    """

    def __init__(
        self,
        *,
        database: Database,
        artifacts: Artifacts,
        settings: Settings,
        keys: Keys,
        live_path: Path,
        now: Callable[[], datetime],
        callbacks: Callbacks,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._settings = settings
        self._keys = keys
        self._live_path = live_path
        self._now = now
        self._callbacks = callbacks
        self._file = settings.folder.decisions
        self._overview = Overview(database, artifacts, settings, now, callbacks)

    def recover(self) -> None:
        """At start: both copies of the decisions agree, and `live.json` says the same."""
        for link in reconcile(self._database, self._file):
            log.warning("decision_recovered", sequence=link.sequence, task=link.task)
        self.publish()

    def settle(self) -> None:
        """Make up for what a full disk has kept from happening: now and then, from the watch.

        A decision that reached the file and not the database, and one that is not published.
        """
        try:
            self._catch_up()
            self.publish()
        except FlywheelError as error:
            log.error("publication_waits", error=str(error))

    def publish(self) -> Live | None:
        """Bring `live.json` in line with the decisions; None when it was."""
        live = publish(
            self._database,
            self._artifacts,
            self._settings.tasks,
            self._live_path,
            self._keys.live,
        )
        if live is not None:
            self._callbacks.published(live)
        return live

    # What an operator sees.

    def status(self) -> Status:
        return self._overview.status()

    def versions(self, task: str) -> list[Version]:
        """All versions of a task with their states, newest first."""
        self._check_task(task)
        return self._overview.versions(task)

    def show(self, task: str, number: int) -> VersionDetail:
        """One version with its report."""
        self._check_task(task)
        return self._overview.show(task, number)

    def card(self, task: str, number: int) -> str:
        """A version's model card, as its latest evaluation wrote it."""
        version = self.show(task, number).version
        card = read_card(self._artifacts, version.report) if version.report else None
        if card is None:
            raise Refused(
                f"{version.name} has no model card yet: its evaluation writes it"
                if version.report is None
                else f"{version.name} was evaluated before there were model cards"
            )
        return card

    def champions(self, task: str) -> tuple[Reign, ...]:
        """Who was the champion of a task when, oldest first."""
        self._check_task(task)
        return self._overview.champions(task)

    def activity(
        self,
        limit: int = 50,
        before: datetime | None = None,
        kind: ActivityKind | None = None,
    ) -> list[Activity]:
        """What happened, newest first: at most so much, of one kind or of all, before a moment."""
        return self._overview.activity(limit, before, kind)

    def ticks(self, limit: int = 100, job: str | None = None) -> list[Tick]:
        with self._database.snapshot() as tx:
            return recent_ticks(tx, limit, job)

    def waiting(self) -> list[Version]:
        """The versions that wait for an approval."""
        return [one.waiting for one in self.status().tasks if one.waiting]

    # What an operator decides.

    def approve(self, task: str, number: int, *, report: str, operator: str) -> Decision:
        """Make a version the champion.

        Only with the report that the operator looked at, if it is the latest one, says
        promotable, and compares with the present champion; and only what verifies byte by
        byte. Raises `Refused` or `ArtifactDamaged` otherwise.
        """
        with self._deciding() as tx:
            version, history = self._find(tx, task, number)
            self._check_approvable(history, version, report)
            self._verify(version, report)
            decision = self._record(tx, "approve", version, report, operator, "")
        return self._decided(decision, version)

    def reject(self, task: str, number: int, *, reason: str, operator: str) -> Decision:
        """Say no to a version, with the reason."""
        why = required_reason(reason, "reject")
        with self._deciding() as tx:
            version, history = self._find(tx, task, number)
            if version.student in history.approved:
                raise Refused(f"{version.name} was approved already; roll back instead")
            if history.last_decision(version.student) is not None:
                raise Refused(f"{version.name} was rejected already")
            evaluation = history.evaluations.get(version.student)
            report = evaluation.report if evaluation else None
            decision = self._record(tx, "reject", version, report, operator, why)
        return self._decided(decision, version)

    def rollback(self, task: str, to: int | None, *, reason: str, operator: str) -> Decision:
        """Make a formerly approved version the champion again; None: the one before."""
        why = required_reason(reason, "roll back")
        self._check_task(task)
        with self._deciding() as tx:
            history = load_history(tx, task)
            number = to if to is not None else _approved_before(history, task)
            version, history = self._find(tx, task, number)
            if version.student == history.champion:
                raise Refused(f"{version.name} is the champion already")
            if version.student not in history.approved:
                raise Refused(
                    f"{version.name} was never approved; a rollback goes only to a version "
                    "that an operator approved once"
                )
            report = approval_of(list(history.decisions), version.student).report
            self._verify(version, report)
            decision = self._record(tx, "rollback", version, report, operator, why)
        return self._decided(decision, version)

    def automatic_rollback(self, task: str, reason: str) -> Decision:
        """The watch saw a significant regression: back to the version approved before."""
        return self.rollback(task, None, reason=reason, operator=AUTOMATIC)

    def damaged_champions(self) -> list[str]:
        """The tasks whose champion's files, read byte by byte, are not what was approved."""
        found = []
        for task in self._settings.tasks:
            with self._database.snapshot() as tx:
                history = load_history(tx, task)
            if history.champion is None:
                continue
            champion = next((v for v in history.versions if v.student == history.champion), None)
            try:
                if champion is not None:
                    approval = approval_of(list(history.decisions), champion.student)
                    self._verify(champion, approval.report)
            except DataDamaged as error:
                log.error("champion_damaged", task=task, error=str(error))
                found.append(task)
        return found

    # What an operator starts and stops.

    def pause(self, job: str, *, operator: str) -> None:
        """Stop a job, or `all`, from its next tick on."""
        self._check_job(job)
        with self._database.transaction() as tx:
            pause(tx, job=job, operator=operator, now=self._now())
        log.info("job_paused", job=job, operator=operator)
        self._overview.forget()

    def resume(self, job: str, *, operator: str) -> None:
        self._check_job(job)
        with self._database.transaction() as tx:
            lifted = resume(tx, job)
            if job != ALL_JOBS and is_paused(tx, job):
                raise Refused(
                    f"the whole learner is paused; `flywheel resume` lifts that ({job} too)"
                )
        if not lifted:
            raise Refused(
                f"{'nothing' if job == ALL_JOBS else job} is paused"
                if job == ALL_JOBS
                else f"{job} is not paused"
            )
        log.info("job_resumed", jobs=lifted, operator=operator)
        self._overview.forget()

    def request_train(self, task: str, *, operator: str) -> None:
        """Ask for a training run without waiting for its schedule."""
        self._check_task(task)
        if not self._settings.teacher.terms_allow_training:
            raise Refused(
                "the teacher's terms are not recorded as allowing training: set teacher.terms "
                "and teacher.terms_allow_training"
            )
        log.info("training_requested", task=task, operator=operator)
        self._callbacks.request_train(task)

    # What could not be processed by itself.

    def dead_letters(self, limit: int = 100, *, pending_only: bool = False) -> list[DeadLetter]:
        with self._database.snapshot() as tx:
            return dead_letters(tx, limit=limit, pending_only=pending_only)

    def replay(self, topic: str, partition: int, offset: int, *, operator: str) -> None:
        """Put a dead letter back on the topic, as it came. Marked only once it is durable."""
        letter = self._find_letter(topic, partition, offset)
        if letter.payload is None:
            raise Refused("the record was empty; there is nothing to replay")
        writer = self._callbacks.topic_writer()
        writer.send(letter.payload, headers=letter.headers)
        writer.flush(REPLAY_TIMEOUT_SECONDS)
        with self._database.transaction() as tx:
            mark_replayed(tx, letter, self._now())
        log.info("dead_letter_replayed", partition=partition, offset=offset, operator=operator)
        self._overview.forget()

    def unknown_outcomes(self) -> list[UnknownOutcome]:
        return list(self._callbacks.unknown_outcomes.list())

    def release(self, key: str, *, operator: str) -> None:
        """Ask the teacher again, although the first answer may have been paid for."""
        self._check_unknown(key)
        self._callbacks.unknown_outcomes.release(key)
        log.info("unknown_outcome_released", key=key, operator=operator)
        self._overview.forget()

    def drop(self, key: str, *, operator: str) -> None:
        """Never ask the teacher for this one again."""
        self._check_unknown(key)
        self._callbacks.unknown_outcomes.drop(key)
        log.info("unknown_outcome_dropped", key=key, operator=operator)
        self._overview.forget()

    def offsets(self) -> Mapping[str, Mapping[str, int]]:
        """Where each topic was read to, by partition."""
        with self._database.snapshot() as tx:
            return all_offsets(tx)

    def freeze(self, *, operator: str) -> Frozen:
        """The database as it is now, in files, for a backup."""
        log.info("backup_begun", operator=operator)
        settings = self._settings
        return freeze(self._database, settings.folder, settings.ingest.min_free_disk_mb)

    def note_change(self) -> None:
        """Something that the overview shows has changed; the pages are told at once."""
        self._overview.forget()

    def _find(self, tx: Cursor, task: str, number: int) -> tuple[StudentVersion, History]:
        self._check_task(task)
        history = load_history(tx, task)
        for version in history.versions:
            if version.number == number:
                return version, history
        raise Refused(f"{task} has no version {number}")

    def _check_approvable(self, history: History, version: StudentVersion, report: str) -> None:
        name, decision = version.name, history.last_decision(version.student)
        evaluation = history.evaluations.get(version.student)
        if version.student == history.champion:
            raise Refused(f"{name} is the champion already")
        if version.student in history.approved:
            raise Refused(f"{name} was approved before; roll back to it instead")
        if decision is not None:
            raise Refused(f"{name} was rejected by {decision.operator}: {decision.reason}")
        if evaluation is None:
            raise Refused(f"{name} was not evaluated yet")
        if evaluation.report != report:
            raise Refused(
                f"the report that you looked at is not the latest one of {name}; look again"
            )
        if not evaluation.promotable:
            raise Refused(f"the gate does not let {name} through: {evaluation.verdict}")
        if history.is_stale(version.student):
            raise Refused(
                f"{name} was compared with another champion than the present one; "
                "it has to be evaluated again"
            )
        if version.number < history.newest_approved():
            raise Refused(f"a version newer than {name} was approved already")

    def _verify(self, version: StudentVersion, report: str | None) -> None:
        self._artifacts.open("student", version.student)
        self._artifacts.open(base_kind(version.family), version.base)
        if report is None:
            raise ArtifactDamaged(f"{version.name} was approved without a report")
        content = read_report(self._artifacts, report)
        if content.student != version.student or not content.gate.promotable:
            raise ArtifactDamaged(
                f"report {report[:12]} does not say that {version.name} may be served"
            )

    @contextmanager
    def _deciding(self) -> Iterator[Cursor]:
        """A transaction for one decision. `record_decision` writes the file before the commit,
        so that a commit that finds no space leaves a decision that was made."""
        self._catch_up()
        before = self._written()
        try:
            with self._database.transaction() as tx:
                yield tx
        except DiskFull as error:
            if self._written() == before:
                raise
            raise DiskFull(
                f"the decision is recorded in {self._file.name}, and takes effect by itself as "
                f"soon as there is space: {error}"
            ) from error

    def _catch_up(self) -> None:
        with self._database.snapshot() as tx:
            known = len(decisions(tx))
        if self._written() > known:
            for link in reconcile(self._database, self._file):
                log.warning("decision_recovered", sequence=link.sequence, task=link.task)
            self._overview.forget()

    def _written(self) -> int:
        return len(read_file(self._file))

    def _record(
        self,
        tx: Cursor,
        action: DecisionAction,
        version: StudentVersion,
        report: str | None,
        operator: str,
        reason: str,
    ) -> Decision:
        return record_decision(
            tx,
            self._file,
            task=version.task,
            action=action,
            student=version.student,
            report=report,
            operator=operator,
            reason=reason,
            now=self._now(),
        )

    def _decided(self, decision: Decision, version: StudentVersion) -> Decision:
        log.info(
            "decision_recorded",
            action=decision.action,
            student_version=version.name,
            operator=decision.operator,
            sequence=decision.sequence,
        )
        self._callbacks.decided(decision)
        self._overview.forget()
        try:
            self.publish()
        except DiskFull as error:
            raise DiskFull(
                f"the decision is recorded, and is published by itself as soon as there is space: "
                f"{error}"
            ) from error
        return decision

    def _find_letter(self, topic: str, partition: int, offset: int) -> DeadLetter:
        with self._database.snapshot() as tx:
            found = dead_letter(tx, topic, partition, offset)
        if found is None:
            raise Refused(f"there is no dead letter at {topic}/{partition}/{offset}")
        if found.replayed_at is not None:
            raise Refused(f"the dead letter at {topic}/{partition}/{offset} was replayed already")
        return found

    def _check_task(self, task: str) -> None:
        if task not in self._settings.tasks:
            known = ", ".join(self._settings.tasks) or "none"
            raise Refused(f"there is no task {task}; the settings have: {known}")

    def _check_job(self, job: str) -> None:
        jobs = self._callbacks.next_ticks()
        if job != ALL_JOBS and job not in jobs:
            raise Refused(f"there is no job {job}; there are: {', '.join(sorted(jobs))}, all")

    def _check_unknown(self, key: str) -> None:
        if key not in {held.key for held in self._callbacks.unknown_outcomes.list()}:
            raise Refused(f"no held call has the key {key}")


def required_reason(reason: str, verb: str) -> str:
    """The reason without space around it. Raises `Refused` where there is none."""
    text = reason.strip()
    if not text:
        raise Refused(f"to {verb}, say why")
    if len(text) > 2_000:
        raise Refused("the reason is longer than 2,000 characters")
    return text


def _approved_before(history: History, task: str) -> int:
    """The version that was approved before the champion was: never forward to a newer one."""
    approvals = [link.student for link in history.decisions if link.action == "approve"]
    if history.champion is None:
        raise Refused(f"{task} has no champion yet; there is nothing to roll back")
    earlier = approvals[: approvals.index(history.champion)]
    numbers = {version.student: version.number for version in history.versions}
    for student in reversed(earlier):
        if student in numbers:
            return numbers[student]
    raise Refused(f"{task} has no version that was approved before the champion")
