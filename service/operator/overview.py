"""What the console and the API show, put together from the database and the learner."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from threading import Lock

import structlog

from pipelines.chat_request import NOT_ANSWERED
from pipelines.decide import ceiling_in_words
from pipelines.errors import ArtifactDamaged, Refused
from pipelines.label import write_answer
from pipelines.shape import shape, unlike
from service.operator.activity import recent_activity
from service.operator.board import Board
from service.operator.need import NeedFacts
from service.operator.needs import needs
from service.operator.quality import quality, serving
from service.operator.status import (
    Activity,
    ActivityKind,
    Figures,
    GatewaySeen,
    IngestState,
    JobStatus,
    Money,
    Progress,
    Reign,
    Status,
    Step,
    TaskStatus,
    TeacherStatus,
    Version,
    VersionDetail,
)
from service.operator.steps import DRAWN, LATELY, LoopFacts, loop_steps
from service.operator.versions import (
    History,
    became,
    describe,
    load_history,
    reigns,
    short_name,
)
from service.purses import emptied
from service.settings import Settings
from storage.artifacts import Artifacts
from storage.database import Cursor, Database
from storage.datasets import dataset_by_digest, latest_dataset
from storage.dead_letters import count_dead_letters
from storage.evaluations import evaluations_of
from storage.leases import Spend, reported_spend
from storage.ledger import DaySpend, Ledger
from storage.past import past_since
from storage.reports import Report, read_card, read_report
from storage.runs import TrainingRun, failures_in_a_row, runs
from storage.samples import drawn_since, last_drawn
from storage.shapes import newest_shapes
from storage.swaps import last_swap
from storage.ticks import ALL_JOBS, Tick, last_successes, last_ticks, last_worked, pauses
from storage.traffic import stored_at, window_sums

log = structlog.get_logger()

FRESH_SECONDS = 0.7  # several pages that look at once share one answer
FEED_LENGTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    """What all tasks share in one look at the learner."""

    now: datetime
    jobs: tuple[JobStatus, ...]
    worked: Mapping[str, Tick]
    ingest: IngestState
    stored_at: datetime | None
    progress: Progress | None
    gateways: tuple[GatewaySeen, ...]


class Overview:
    """Reads only. Reports are content-addressed, so one that was read is never read again."""

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        settings: Settings,
        now: Callable[[], datetime],
        board: Board,
        ledger: Ledger,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._settings = settings
        self._now = now
        self._board = board
        self._ledger = ledger
        self._lock = Lock()
        self._cached: tuple[float, Status] | None = None

        @lru_cache(maxsize=256)
        def read(digest: str) -> Report | None:
            try:
                return read_report(artifacts, digest)
            except ArtifactDamaged as error:
                log.error("report_unreadable", report=digest, error=str(error))
                return None

        self._read = read

    def status(self) -> Status:
        """The overview, at most a moment old."""
        with self._lock:
            if self._cached and time.monotonic() - self._cached[0] < FRESH_SECONDS:
                return self._cached[1]
            status = self._status()
            self._cached = (time.monotonic(), status)
            return status

    def forget(self) -> None:
        """Look again at the next call."""
        with self._lock:
            self._cached = None

    def versions(self, task: str) -> list[Version]:
        with self._database.snapshot() as tx:
            return self._versions(tx, task)

    def show(self, task: str, number: int) -> VersionDetail:
        """One version. Raises `Refused` when there is no such number."""
        with self._database.snapshot() as tx:
            history = load_history(tx, task)
            found = [v for v in describe(history, self._read) if v.number == number]
            if not found:
                raise Refused(f"{task} has no version {number}")
            training = next(v.training for v in history.versions if v.number == number)
            dataset = dataset_by_digest(tx, found[0].dataset)
            evaluations = evaluations_of(tx, task, found[0].student)
        version = found[0]
        report = self._read(version.report) if version.report else None
        figures = self._board.figures(task)
        return VersionDetail(
            version=version,
            report=report,
            dataset=dataset,
            teacher_share=None if version.coverage is None else 1 - version.coverage,
            saved_per_day=_saved_per_day(version, figures),
            ceiling=ceiling_in_words(report.ceiling) if report else "",
            training=training,
            events=became(history, version, evaluations),
        )

    def card(self, task: str, number: int) -> str:
        """A version's model card. Raises `Refused` where it has none."""
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
        """The champions of a task over time, oldest first."""
        with self._database.snapshot() as tx:
            return reigns(load_history(tx, task))

    def activity(
        self,
        limit: int,
        before: datetime | None = None,
        kind: ActivityKind | None = None,
    ) -> list[Activity]:
        with self._database.snapshot() as tx:
            tasks = list(self._settings.tasks)
            return recent_activity(tx, tasks, self._now(), limit, before=before, kind=kind)

    def _status(self) -> Status:
        unknown = len(self._ledger.unknown())
        now, ingest, told = self._now(), self._board.ingest, self._board.progress
        gateways, spent = self._board.gateways(now), self._ledger.spent_on(now)
        with self._database.snapshot() as tx:
            jobs = self._jobs(tx)
            present = _Present(
                now=now,
                jobs=jobs,
                worked=last_worked(tx),
                ingest=ingest,
                stored_at=stored_at(tx),
                progress=told,
                gateways=gateways,
            )
            tasks = tuple(self._task(tx, task, present) for task in self._settings.tasks)
            escalated = reported_spend(tx, now.astimezone(UTC).date())
            letters = count_dead_letters(tx)
            empty = emptied(tx, self._ledger, self._settings, now)
            failures = {task: failures_in_a_row(tx, task) for task in self._settings.tasks}
            all_paused = any(pause.job == ALL_JOBS for pause in pauses(tx))
            feed = tuple(recent_activity(tx, list(self._settings.tasks), now, FEED_LENGTH))
        teacher = teacher_status(self._settings)
        budget = self._settings.budget
        return Status(
            at=now,
            tasks=tasks,
            needs=needs(
                NeedFacts(
                    today=now.astimezone(UTC).date(),
                    tasks=tasks,
                    failures=failures,
                    jobs=jobs,
                    all_paused=all_paused,
                    teacher=teacher,
                    labelling=self._board.labelling(),
                    letters=letters,
                    unknown=unknown,
                    held=ingest.reason,
                    labels=spent,
                    emptied=empty,
                    escalated=escalated,
                    budget=budget,
                    budget_share=self._settings.notify.budget_share,
                )
            ),
            jobs=jobs,
            all_paused=all_paused,
            progress=_named(told, tasks),
            teacher=teacher,
            dead_letters=letters,
            unknown_outcomes=unknown,
            activity=feed,
            money=_money(spent, escalated, self._settings),
            gateways=gateways,
        )

    def _versions(self, tx: Cursor, task: str) -> list[Version]:
        return describe(load_history(tx, task), self._read)

    def _task(self, tx: Cursor, task: str, present: _Present) -> TaskStatus:
        settings = self._settings.tasks[task]
        history = load_history(tx, task)
        described = describe(history, self._read)
        figures = self._board.figures(task)
        champion = next((v for v in described if v.state == "champion"), None)
        last_run = runs(tx, task, 1)
        since = present.now - timedelta(days=1)
        past = past_since(tx, task, since)
        today = window_sums(tx, task, None, since, present.now + timedelta(minutes=1))
        return TaskStatus(
            task=task,
            labels=len(settings.labels),
            target=settings.target,
            champion=champion,
            waiting=next((v for v in described if v.state == "waiting"), None),
            newest=described[0] if described else None,
            versions=len(described),
            serving=serving(champion, figures),
            quality=quality(champion, figures, settings.target),
            ceiling=ceiling_in_words(figures.ceiling),
            figures=figures,
            last_run=last_run[0] if last_run else None,
            requests=today.events + sum(past[why] for why in past if why not in NOT_ANSWERED),
            past=past,
            unlike=self._unlike(tx, task),
            loop=self._loop(tx, task, present, history, described, figures, last_run),
            reigns=reigns(history),
        )

    def _unlike(self, tx: Cursor, task: str) -> str:
        described = self._settings.task_of(task)
        own = shape(write_answer(described.labels[0], described))
        return unlike(own, newest_shapes(tx, task))

    def _loop(
        self,
        tx: Cursor,
        task: str,
        present: _Present,
        history: History,
        described: list[Version],
        figures: Figures,
        last_run: list[TrainingRun],
    ) -> tuple[Step, ...]:
        now = present.now
        evaluated = [version for version in described if version.evaluated_at is not None]
        judged = max(evaluated, key=lambda one: one.evaluated_at or now, default=None)
        report = self._read(judged.report) if judged and judged.report else None
        decision = history.chain.links[-1] if history.chain.links else None
        lately = window_sums(tx, task, None, now - LATELY, now + timedelta(minutes=1))
        return loop_steps(
            LoopFacts(
                now=now,
                task=task,
                figures=figures,
                jobs={job.job: job for job in present.jobs},
                worked=present.worked,
                ingest=present.ingest,
                stored_at=present.stored_at,
                lately=lately.events,
                drawn=drawn_since(tx, task, now - DRAWN),
                drawn_at=last_drawn(tx, task),
                dataset=latest_dataset(tx, task),
                last_run=last_run[0] if last_run else None,
                progress=present.progress,
                judged=judged,
                report=report,
                champion=next((v for v in described if v.state == "champion"), None),
                waiting=next((v for v in described if v.state == "waiting"), None),
                decision=decision,
                decided=short_name(history, decision.student) if decision else "",
                gateways=present.gateways,
                swapped_at=last_swap(tx, task),
            )
        )

    def _jobs(self, tx: Cursor) -> tuple[JobStatus, ...]:
        last, successes = last_ticks(tx), last_successes(tx)
        paused = {pause.job: pause.paused_by for pause in pauses(tx)}
        coming = self._board.next_ticks
        return tuple(
            JobStatus(
                job=job,
                paused=job in paused or ALL_JOBS in paused,
                last=last.get(job),
                last_success=successes.get(job),
                next_at=coming.get(job),
                paused_by=paused.get(job) or paused.get(ALL_JOBS),
            )
            for job in [*coming, *sorted(set(last) - set(coming))]
        )


def _money(labels: DaySpend, escalated: Spend, settings: Settings) -> Money:
    return Money(
        labels=labels.money,
        label_budget=settings.budget.label_money,
        escalations=escalated.money,
        escalation_budget=settings.budget.escalation_money,
    )


def teacher_status(settings: Settings) -> TeacherStatus:
    """Who labels. A scripted teacher says so in its model's name."""
    teacher = settings.teacher
    return TeacherStatus(
        model=teacher.model,
        scripted=teacher.model.startswith("scripted") or "scripted" in teacher.terms.lower(),
        terms=teacher.terms,
        terms_allow_training=teacher.terms_allow_training,
    )


def _named(progress: Progress | None, tasks: tuple[TaskStatus, ...]) -> Progress | None:
    """The trainer does not know for which task it works; the run that is noted does."""
    if progress is None or progress.task:
        return progress
    running = [one.task for one in tasks if one.last_run and one.last_run.status == "running"]
    return replace(progress, task=running[0]) if running else progress


def _saved_per_day(version: Version, figures: Figures) -> float | None:
    known = (version.coverage, figures.events_per_day, figures.cost_per_call)
    if known[0] is None or known[1] is None or known[2] is None:
        return None
    return known[0] * known[1] * known[2]
