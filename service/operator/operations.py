"""Everything an operator can do. The console, the API and the command line only call this."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import structlog

from pipelines.decide import (
    refuse_approval,
    refuse_rejection,
    required_reason,
    rollback_target,
)
from pipelines.errors import DataDamaged, DiskFull, FlywheelError, Refused
from pipelines.types import BY_ITSELF, DeadLetter, Decision, DecisionAction, StudentVersion
from service.keys import Keys
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.held_calls import HeldCalls
from service.operator.letters import Letters
from service.operator.overview import Overview
from service.operator.parking import Parking
from service.operator.publish import publish, show_published, verify_servable
from service.operator.status import (
    Activity,
    ActivityKind,
    Reign,
    Status,
    UnknownOutcome,
    Version,
    VersionDetail,
)
from service.operator.versions import History, load_history, refuse_too_much
from service.settings import Settings
from service.topics import TopicWriter
from storage.artifacts import Artifacts
from storage.database import Cursor, Database
from storage.decisions import decisions, read_file, reconcile, record_decision
from storage.dump import Frozen, freeze
from storage.ledger import Ledger
from storage.live import Live, read_live
from storage.reports import read_report
from storage.ticks import ALL_JOBS, Tick, is_paused, pause, recent_ticks, resume
from storage.traffic import all_offsets
from storage.votes import Parked

log = structlog.get_logger()


class Operations:
    """An operator's view of, and hand on, one learner. Safe to use from several threads.

    Decisions are made inside one write transaction, so of two operators who decide at the
    same time the second meets what the first has done.
    """

    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        artifacts: Artifacts,
        settings: Settings,
        keys: Keys,
        board: Board,
        metrics: LearnerMetrics,
        now: Callable[[], datetime],
        open_writer: Callable[[], TopicWriter],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._settings = settings
        self._keys = keys
        self._board = board
        self._metrics = metrics
        self._now = now
        self._letters = Letters(database, now, open_writer)
        self._parking = Parking(database, settings.tasks, now)
        self._file = settings.folder.decisions
        self._held = HeldCalls(database, ledger, now)
        self._overview = Overview(database, artifacts, settings, now, board, ledger)

    def close(self) -> None:
        self._letters.close()

    def recover(self) -> None:
        """At start: both copies of the decisions agree, and `live.json` says the same."""
        for link in reconcile(self._database, self._file):
            log.warning("decision_recovered", sequence=link.sequence, task=link.task)
        if self.publish() is None:
            live = read_live(self._settings.folder.live, self._keys.live)
            show_published(live, self._board, self._metrics)

    def settle(self) -> None:
        """Make up for what a full disk has kept from happening: a decision that reached the file
        and not the database, and one that is not published. Now and then, from the watch."""
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
            self._settings.folder.live,
            self._keys.live,
        )
        if live is not None:
            show_published(live, self._board, self._metrics)
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
        self._check_task(task)
        return self._overview.card(task, number)

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

    def approve(
        self,
        task: str,
        number: int,
        *,
        report: str,
        operator: str,
        serves_nothing: bool = False,
        above_ceiling: bool = False,
    ) -> Decision:
        """Make a version the champion; `serves_nothing`: knowing that it has no threshold;
        `above_ceiling`: that its target is above what the teacher agrees with itself.

        Only where `pipelines.decide.refuse_approval` allows it, and only what verifies byte by
        byte: else raises `Refused` or `ArtifactDamaged`."""
        with self._deciding() as tx:
            version, history = self._find(tx, task, number)
            chain, judged = history.chain, history.evaluations.get(version.student)
            refuse_approval(chain, version, history.versions, judged, report, serves_nothing)
            verify_servable(self._artifacts, version, report)
            if not above_ceiling:
                refuse_too_much(version, read_report(self._artifacts, report))
            decision = self._record(tx, "approve", version, report, operator, "")
        return self._decided(decision, version)

    def reject(self, task: str, number: int, *, reason: str, operator: str) -> Decision:
        """Say no to a version, with the reason."""
        why = required_reason(reason, "reject")
        with self._deciding() as tx:
            version, history = self._find(tx, task, number)
            refuse_rejection(history.chain, version)
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
            version = rollback_target(history.chain, history.versions, to)
            report = history.chain.approval_of(version.student).report
            verify_servable(self._artifacts, version, report)
            decision = self._record(tx, "rollback", version, report, operator, why)
        return self._decided(decision, version)

    def automatic_rollback(self, task: str, reason: str) -> Decision:
        """The watch saw a significant regression: back to the version approved before."""
        return self.rollback(task, None, reason=reason, operator=BY_ITSELF)

    def damaged_champions(self) -> list[str]:
        """The tasks whose champion's files, read byte by byte, are not what was approved."""
        found = []
        for task in self._settings.tasks:
            with self._database.snapshot() as tx:
                history = load_history(tx, task)
            student = history.chain.champion
            champion = next((v for v in history.versions if v.student == student), None)
            try:
                if champion is not None:
                    approval = history.chain.approval_of(champion.student)
                    verify_servable(self._artifacts, champion, approval.report)
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
            raise Refused("nothing is paused" if job == ALL_JOBS else f"{job} is not paused")
        log.info("job_resumed", jobs=lifted, operator=operator)
        self.note_change()

    def request_train(self, task: str, *, operator: str) -> None:
        """Ask for a training run without waiting for its schedule."""
        self._check_task(task)
        if not self._settings.teacher.terms_allow_training:
            raise Refused(
                "the teacher's terms are not recorded as allowing training: set teacher.terms "
                "and teacher.terms_allow_training"
            )
        log.info("training_requested", task=task, operator=operator)
        self._board.want_training(task)

    # What could not be processed by itself.

    def dead_letters(self, limit: int = 100, *, pending_only: bool = False) -> list[DeadLetter]:
        return self._letters.list(limit, pending_only=pending_only)

    def replay(self, topic: str, partition: int, offset: int, *, operator: str) -> None:
        """Put a dead letter back on the topic, as it came."""
        self._letters.replay(topic, partition, offset)
        log.info("dead_letter_replayed", partition=partition, offset=offset, operator=operator)
        self._overview.forget()

    def parked(self, task: str) -> list[Parked]:
        """Prompts on which the teacher contradicts itself."""
        self._check_task(task)
        return self._parking.list(task)

    def settle_label(self, task: str, event_id: str, label: str, *, operator: str) -> None:
        """Say what is right where the teacher contradicts itself."""
        self._check_task(task)
        self._parking.settle(task, event_id, label)
        log.info("label_settled", task=task, event_id=event_id, operator=operator)
        self._overview.forget()

    def unknown_outcomes(self) -> list[UnknownOutcome]:
        return list(self._held.list())

    def release(self, key: str, *, operator: str) -> None:
        """Ask the teacher again, although the first answer may have been paid for."""
        self._held.release(key)
        log.info("unknown_outcome_released", key=key, operator=operator)
        self._overview.forget()

    def drop(self, key: str, *, operator: str) -> None:
        """Never ask the teacher for this one again."""
        self._held.drop(key)
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
        self._metrics.decisions.labels(task=decision.task, action=decision.action).inc()
        self._overview.forget()
        try:
            self.publish()
        except DiskFull as error:
            raise DiskFull(
                f"the decision is recorded, and is published by itself as soon as there is space: "
                f"{error}"
            ) from error
        return decision

    def _check_task(self, task: str) -> None:
        if task not in self._settings.tasks:
            known = ", ".join(self._settings.tasks) or "none"
            raise Refused(f"there is no task {task}; the settings have: {known}")

    def _check_job(self, job: str) -> None:
        if job not in (ALL_JOBS, *(jobs := self._board.next_ticks)):
            raise Refused(f"there is no job {job}; there are: {', '.join(sorted(jobs))}, all")
