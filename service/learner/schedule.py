"""When the jobs run: APScheduler fires, every firing is recorded once, with what came of it."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

import structlog
from apscheduler.events import (
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from pipelines.errors import FlywheelError, TrainingRunFailed
from service.host.durations import parse_schedule
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from storage.database import Database
from storage.ticks import (
    JobResult,
    TickOutcome,
    end_tick,
    fail_running_ticks,
    is_paused,
    last_successes,
    record_tick,
    start_tick,
)

log = structlog.get_logger()

Job = Callable[[], JobResult]
INGEST_JOB = "ingest"
# A tick that could not start in time is still worth starting within this.
GRACE = timedelta(minutes=5)


class Schedule:
    """One instance of each job at a time; a job that is paused is recorded as paused."""

    def __init__(
        self,
        jobs: Mapping[str, tuple[str, Job]],
        database: Database,
        metrics: LearnerMetrics,
        board: Board,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._jobs = jobs
        self._board = board
        self._database = database
        self._metrics = metrics
        self._now = now
        self._planned: dict[str, datetime] = {}
        self._running = {name: Lock() for name in jobs}
        self._executor = _PlannedExecutor(len(jobs) + 2, self._planned)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": self._executor},
            job_defaults={
                "coalesce": True,
                "max_instances": 1,
                "misfire_grace_time": int(GRACE.total_seconds()),
            },
        )
        self._scheduler.add_listener(self._missed, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        # Told after the next time is known, also of a job that could not be fired.
        self._scheduler.add_listener(
            lambda event: self._show_next(), EVENT_JOB_SUBMITTED | EVENT_JOB_MAX_INSTANCES
        )
        self._show_next()

    def start(self) -> None:
        """Start firing. What a crash left running is recorded as failed first."""
        with self._database.transaction() as tx:
            for job in fail_running_ticks(tx, self._now()):
                log.warning("job_interrupted", job=job)
        with self._database.snapshot() as tx:
            for job, at in last_successes(tx).items():
                self._metrics.job_last_success.labels(job=job).set(at.timestamp())
        for name, (when, _) in self._jobs.items():
            self._scheduler.add_job(self._fire, _trigger(when), args=[name], id=name)
        self._scheduler.start()
        self._show_next()

    def stop(self) -> None:
        """No new firing; those that run are waited for."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
            # Outside the scheduler's locks: whom a job waits for may ask the scheduler something.
            self._executor.shutdown(wait=True)

    def run_now(self, name: str) -> None:
        """Fire a job at once, beside its schedule."""
        self._scheduler.add_job(
            self._fire, args=[name, self._now()], id=f"{name}-now", replace_existing=True
        )

    def _show_next(self) -> None:
        """The next firing of each job; ingest is one that no clock decides about."""
        ticks: dict[str, datetime | None] = {INGEST_JOB: None}
        for name in self._jobs:
            job = self._scheduler.get_job(name)
            ticks[name] = getattr(job, "next_run_time", None)  # none while it is being added
        self._board.next_ticks = ticks

    def _fire(self, name: str, asked_at: datetime | None = None) -> None:
        scheduled = asked_at or self._planned.get(name) or self._now()
        with self._running[name]:
            try:
                self._run(name, scheduled)
            except FlywheelError as error:  # a full disk: there is nowhere to record it
                log.error("tick_not_recorded", job=name, error=str(error))
                self._count(name, "failed")

    def _run(self, name: str, scheduled: datetime) -> None:
        with self._database.transaction() as tx:
            if is_paused(tx, name):
                record_tick(
                    tx,
                    job=name,
                    scheduled_at=scheduled,
                    outcome="paused",
                    detail="paused by an operator",
                    now=self._now(),
                )
                self._count(name, "paused")
                return
            if not start_tick(tx, job=name, scheduled_at=scheduled, now=self._now()):
                return
        started = time.monotonic()
        outcome, detail = self._attempt(name)
        self._metrics.job_seconds.labels(job=name).observe(time.monotonic() - started)
        with self._database.transaction() as tx:
            end_tick(
                tx,
                job=name,
                scheduled_at=scheduled,
                outcome=outcome,
                detail=detail,
                now=self._now(),
            )
        self._count(name, outcome)
        if outcome != "failed":
            self._metrics.job_last_success.labels(job=name).set(self._now().timestamp())

    def _attempt(self, name: str) -> JobResult:
        """Run the job. A failure is recorded and logged; the schedule goes on."""
        _, job = self._jobs[name]
        try:
            result = job()
        except TrainingRunFailed as error:  # logged where it happened, with its run
            return JobResult("failed", str(error))
        except FlywheelError as error:
            log.error("job_failed", job=name, error=str(error))
            return JobResult("failed", str(error))
        except Exception as error:  # the top of the job's thread
            log.exception("job_failed", job=name)
            return JobResult("failed", f"{type(error).__name__}: {error}")
        log.debug("job_ended", job=name, outcome=result.outcome, detail=result.detail)
        return result

    def _missed(self, event: Any) -> None:
        times = getattr(event, "scheduled_run_times", None) or [event.scheduled_run_time]
        name = event.job_id.removesuffix("-now")
        if name not in self._jobs:
            return
        late = event.code == EVENT_JOB_MISSED
        detail = "it could not start in time" if late else "the one before was still running"
        with self._database.transaction() as tx:
            for at in times:
                record_tick(
                    tx,
                    job=name,
                    scheduled_at=at,
                    outcome="missed",
                    detail=detail,
                    now=self._now(),
                )
        self._count(name, "missed")

    def _count(self, name: str, outcome: TickOutcome) -> None:
        self._metrics.job_ticks.labels(job=name, outcome=outcome).inc()


class _PlannedExecutor(ThreadPoolExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Remembers for which time a job was fired: the job itself is not told."""

    def __init__(self, workers: int, planned: dict[str, datetime]) -> None:
        super().__init__(workers)
        self._planned = planned

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        self._planned[job.id] = run_times[-1]
        super()._do_submit_job(job, run_times)


def _trigger(when: str) -> Any:
    parsed = parse_schedule(when)
    if isinstance(parsed, str):
        return CronTrigger.from_crontab(parsed, timezone=UTC)
    return IntervalTrigger(seconds=parsed.total_seconds(), timezone=UTC)
