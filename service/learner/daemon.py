"""The learner: builds its parts, starts them in order, drains them in reverse."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from pipelines.errors import (
    ExitCode,
    FlywheelError,
    TrainingFailed,
)
from pipelines.types import Decision, StudentVersion
from service.console.app import console_app
from service.host.logs import set_up_logs
from service.host.memory import collect_rarely, hoard_less, tidy
from service.host.process import bind, drain_on_signals, lock_data_folder
from service.keys import open_keys, operator_token
from service.learner.assessor import Assessor, open_assessor
from service.learner.base_models import BaseModels
from service.learner.encoder import publish_encoder
from service.learner.evaluation import Evaluating
from service.learner.gateway_api import gateway_routes
from service.learner.gateways import Gateways
from service.learner.ingest import Ingest
from service.learner.leases import LeaseBook
from service.learner.regression import Regression
from service.learner.relabel import HeldCalls, Relabel
from service.learner.retention import Retention
from service.learner.sampling import Sampling
from service.learner.schedule import Schedule
from service.learner.teacher import Teacher
from service.learner.trainer import Trainer
from service.learner.training import Training, Workshop
from service.learner.watch import Watch
from service.metrics import LearnerMetrics
from service.operator.notify import Notifier
from service.operator.occasions import Occasions, TeacherWord
from service.operator.operations import Operations
from service.operator.status import Callbacks, IngestState
from service.rules import first_policy, intake_rules
from service.settings import Settings
from service.topics import TopicWriter
from service.topics.opening import open_reader, open_writer
from storage.artifacts import Artifact, Artifacts
from storage.database import Database
from storage.durable import write_json
from storage.ledger import Ledger
from storage.live import Live, LiveTask, read_live
from storage.migrate import migrate
from storage.ticks import JobResult
from storage.traffic import forget_offsets

log = structlog.get_logger()

INGEST_JOB = "ingest"


def run_learner(
    settings: Settings, *, reset_offsets: bool = False, stop: Event | None = None
) -> ExitCode:
    """Run until a signal (or `stop`), then drain. Raises `FlywheelError` when it cannot start."""
    hoard_less()
    collect_rarely()
    set_up_logs("learner")
    stop = stop or Event()
    drain_on_signals(stop)
    lock = lock_data_folder(settings.data_dir)
    try:
        learner = Learner(settings, stop)
        try:
            learner.start(reset_offsets=reset_offsets)
            learner.wait()
        finally:
            learner.close()
        return learner.exit_code
    finally:
        lock.close()


class Learner:
    """Everything one learner owns, wired together."""

    def __init__(self, settings: Settings, stop: Event) -> None:
        self._settings = settings
        self._stop = stop
        self._now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.exit_code = ExitCode.OK
        self._listener = bind(settings.learner.host, settings.learner.port, "learner")
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._metrics = LearnerMetrics(self._registry)
        self._keys = open_keys(settings.data_dir, settings.gateway.learner_token.get_secret_value())
        self._tasks = {name: settings.task_of(name) for name in settings.tasks}
        self._live: Mapping[str, LiveTask] = {}
        self._teacher_word = TeacherWord(self._metrics)
        self._threads: list[Thread] = []
        self._closing: list[Callable[[], None]] = [self._listener.close]
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        settings = self._settings
        self._database = Database(
            settings.folder.database, memory_mb=settings.learner.database_memory_mb
        )
        self._closing.append(self._database.close)
        for name in migrate(self._database):
            log.info("migration_applied", name=name)
        self._ledger = Ledger(settings.folder.ledger)
        self._closing.append(self._ledger.close)
        self._artifacts = Artifacts(settings.folder.artifacts)
        self._sampling = Sampling(
            {name: first_policy(settings, self._keys.sampling) for name in self._tasks}
        )
        self._build_jobs(publish_encoder(settings, self._artifacts))
        self._build_console()

    def _build_jobs(self, encoder: Artifact) -> None:
        settings = self._settings
        self._trainer = Trainer(settings.trainer, self._note_progress)
        shop = Workshop(
            database=self._database,
            artifacts=self._artifacts,
            trainer=self._trainer,
            settings=settings,
            tasks=self._tasks,
            encoder=encoder,
            bases=BaseModels(settings, self._artifacts, self._trainer, encoder),
            metrics=self._metrics,
            now=self._now,
        )
        self._training, self._evaluating = Training(shop), Evaluating(shop)
        self._teacher = Teacher(
            settings.teacher,
            settings.budget,
            self._ledger,
            now=self._now,
            on_call=self._teacher_word.note,
        )
        self._relabel = Relabel(
            database=self._database,
            ledger=self._ledger,
            teacher=self._teacher,
            tasks=self._tasks,
            terms=settings.teacher.terms,
            metrics=self._metrics,
            now=self._now,
            stop=self._stop,
        )
        self._watch = Watch(
            database=self._database,
            ledger=self._ledger,
            settings=settings,
            tasks=self._tasks,
            sampling=self._sampling,
            metrics=self._metrics,
            live=lambda task: self._live.get(task, LiveTask()),
            start_training=self._start_training,
            now=self._now,
        )
        self._regression = Regression(
            database=self._database,
            settings=settings.rollback,
            answers=self._new_assessor(),
            live=lambda task: self._live.get(task, LiveTask()),
            metrics=self._metrics,
        )
        self._due: dict[str, str] = {}
        self._retention = Retention(self._database, self._artifacts, settings, self._now)
        when = settings.schedule
        self._schedule = Schedule(
            {
                "relabel": (when.relabel, self._relabel.run),
                "train": (when.train, self._train),
                "evaluate": (when.evaluate, self._evaluate),
                "watch": (when.watch, self._look),
                "retention": (when.retention, self._tidy),
            },
            self._database,
            self._metrics,
            self._now,
        )

    def _build_console(self) -> None:
        settings = self._settings
        live_path = settings.folder.live
        self._gateways = Gateways(self._database, self._now)
        self._operations = Operations(
            database=self._database,
            artifacts=self._artifacts,
            settings=settings,
            keys=self._keys,
            live_path=live_path,
            now=self._now,
            callbacks=Callbacks(
                figures=self._watch.figures,
                progress=self._trainer.told,
                next_ticks=lambda: {INGEST_JOB: None, **self._schedule.next_ticks()},
                request_train=self._watch.ask_for_training,
                published=self._published,
                decided=self._decided,
                topic_writer=self._topic_writer,
                unknown_outcomes=HeldCalls(self._database, self._ledger, self._now),
                ingest=self._ingest_state,
                gateways=self._gateways.seen,
                label_spend=lambda: self._ledger.spent_on(self._now()).money,
            ),
        )
        self._leases = LeaseBook(self._database, settings.budget, now=self._now)
        self._writer: TopicWriter | None = None
        app = console_app(
            self._operations,
            operator_token(settings.data_dir),
            settings,
            gateway_routes(
                keys=self._keys,
                artifacts=self._artifacts,
                live_path=live_path,
                leases=self._leases,
                on_status=self._gateways.heard,
            ),
            registry=self._registry,
            ready=self._ready,
        )
        self._app = app
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, log_level="warning", access_log=False, lifespan="off"
            )
        )

    # Life.

    def start(self, *, reset_offsets: bool = False) -> None:
        """Recover, publish, then console, schedules and ingest, in this order."""
        settings = self._settings
        interrupted = self._training.recover()
        self._relabel.recover()
        self._operations.recover()
        self._check_champions()
        self._load_live()
        self._serve_console()
        self._schedule.start()
        reader = open_reader(settings)
        self._closing.append(reader.close)
        if reset_offsets:
            with self._database.transaction() as tx:
                forget_offsets(tx, reader.name)
            log.warning("offsets_reset", topic=reader.name)
        self._ingest = Ingest(
            reader=reader,
            database=self._database,
            rules=intake_rules(settings, self._keys),
            sampling=self._sampling,
            assessor=self._new_assessor(),
            has_student=lambda task: self._live.get(task, LiveTask()).champion is not None,
            group_salt=self._keys.sampling,
            settings=settings.ingest,
            data_dir=settings.data_dir,
            metrics=self._metrics,
            now=self._now,
        )
        self._ingest.start()
        self._thread("ingest", lambda: self._ingest.run(self._stop))
        notifier = self._notifier()
        self._thread("notify", lambda: notifier.run(self._stop))
        for task in interrupted:
            self._start_training(task, "an interrupted training goes on")
        log.info("learner_started", port=self._port, tasks=sorted(self._tasks))

    def wait(self) -> None:
        """Until a signal, or until a thread has failed."""
        while not self._stop.wait(0.5):
            pass

    def close(self) -> None:
        """In reverse: ingest finishes its batch, schedules, trainer, console, then the stores."""
        self._stop.set()
        log.info("learner_draining")
        if hasattr(self, "_trainer"):
            self._trainer.stop()
        deadline = time.monotonic() + self._settings.learner.drain_timeout.total_seconds()
        for thread in reversed(self._threads):
            if thread.name == "ingest":
                thread.join(max(0.1, deadline - time.monotonic()))
        if hasattr(self, "_schedule"):
            self._schedule.stop()
        if hasattr(self, "_server"):
            self._app.state.stopping.set()
            self._server.should_exit = True
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        for close in reversed(self._closing):
            with suppress(OSError):
                close()
        self._closing.clear()
        log.info("learner_stopped", exit_code=self.exit_code.name)

    def _notifier(self) -> Notifier:
        occasions = Occasions(
            operations=self._operations,
            database=self._database,
            ledger=self._ledger,
            settings=self._settings,
            teacher=self._teacher_word,
            why_held=lambda: self._ingest.held,
            escalated=self._leases.spent,
        )
        console = self._settings.learner.public_url or f"http://127.0.0.1:{self._port}"
        return Notifier(self._settings, occasions.look, self._metrics, console=console)

    def _serve_console(self) -> None:
        self._port = self._listener.getsockname()[1]
        self._thread("console", lambda: self._server.run(sockets=[self._listener]))
        note = self._settings.folder.note("learner")
        note.parent.mkdir(exist_ok=True)
        write_json(
            note,
            {"host": self._settings.learner.host, "port": self._port, "pid": os.getpid()},
        )

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        """A thread that cannot die unnoticed: its failure stops the daemon."""

        def run() -> None:
            try:
                work()
            except FlywheelError as error:
                log.error("thread_failed", thread=name, error=str(error))
                self.exit_code = error.exit_code
            except Exception:
                log.exception("thread_failed", thread=name)
                self.exit_code = ExitCode.FAILURE
            self._stop.set()

        thread = Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    # Jobs.

    def _start_training(self, task: str, reason: str) -> None:
        self._due[task] = reason
        self._schedule.run_now("train")

    def _train(self) -> JobResult:
        """What a trigger asked for; on its own schedule, every task."""
        due = {task: self._due.pop(task) for task in list(self._due)}
        reasons = due or dict.fromkeys(self._tasks, "the schedule")
        details, done = [], False
        self._metrics.training_running.set(1)
        try:
            for task, reason in reasons.items():
                result, version = self._training.run(task, reason)
                details.append(result.detail)
                if version is not None:
                    done = True
                    details.append(self._evaluating.run(task).detail)
                    details += self._challenge(version)
        finally:
            self._metrics.training_running.set(0)
            self._operations.note_change()
        return JobResult("done" if done else "nothing", "; ".join(details) or "there are no tasks")

    def _challenge(self, version: StudentVersion) -> list[str]:
        """The task's second recipe on the same labels, where it has one."""
        if self._settings.tasks[version.task].challenger is None:
            return []
        self._operations.note_change()
        try:
            result, challenger = self._training.challenge(version)
        except TrainingFailed as error:  # the version that it would challenge stands
            return [f"the challenger failed: {error}"]
        if challenger is None:
            return [result.detail]
        return [result.detail, self._evaluating.run(version.task).detail]

    def _evaluate(self) -> JobResult:
        results = [self._evaluating.run(task) for task in self._tasks]
        done = any(result.outcome == "done" for result in results)
        if done:
            self._operations.note_change()
        details = "; ".join(result.detail for result in results)
        return JobResult("done" if done else "nothing", details or "there are no tasks")

    def _tidy(self) -> JobResult:
        """Old things go; what is served is read, before somebody needs it and it is damaged."""
        self._check_champions()
        return self._retention.run()

    def _check_champions(self) -> None:
        damaged = self._operations.damaged_champions()
        for task in self._tasks:
            self._metrics.champion_damaged.labels(task=task).set(task in damaged)

    def _look(self) -> JobResult:
        self._operations.settle()
        result = self._watch.run()
        self._metrics.teacher_breaker_open.set(self._teacher.breaker_open)
        for name in self._tasks:
            self._roll_back(name, self._regression.look(name))
            waiting = sum(version.state == "waiting" for version in self._operations.versions(name))
            self._metrics.versions_waiting.labels(task=name).set(waiting)
        spent = self._leases.spent()
        self._metrics.escalation_spend.labels(kind="calls").set(spent.calls)
        self._metrics.escalation_spend.labels(kind="money").set(spent.money)
        self._operations.note_change()
        tidy()
        return result

    def _roll_back(self, task: str, reason: str | None) -> None:
        """Pages by its log line, its metric and its notification, whoever has to look then."""
        if reason is not None and self._settings.rollback.automatic:
            self._operations.automatic_rollback(task, reason)

    # What the parts tell each other.

    def _load_live(self) -> None:
        self._published(read_live(self._settings.folder.live, self._keys.live))

    def _published(self, live: Live) -> None:
        self._live = live.tasks
        self._metrics.student_info.clear()
        for task, one in live.tasks.items():
            for role, student in (("champion", one.champion), ("previous", one.previous)):
                if student is not None:
                    info = self._metrics.student_info.labels(
                        task=task, version=student.name, role=role
                    )
                    info.set(1)

    def _decided(self, decision: Decision) -> None:
        self._metrics.decisions.labels(task=decision.task, action=decision.action).inc()

    def _ingest_state(self) -> IngestState:
        """Before ingest has started there is nothing to say of it."""
        if not hasattr(self, "_ingest"):
            return IngestState()
        lag = self._registry.get_sample_value("flywheel_topic_lag_records")
        return IngestState(held=self._ingest.why_stopped, lag=int(lag or 0))

    def _note_progress(self, told: Mapping[str, Any]) -> None:
        self._metrics.training_progress.set(told["step"] / max(1, told["total"]))
        self._metrics.training_rate.set(told["examples_per_second"])
        self._metrics.training_seconds_left.set(told["seconds_left"] or 0)
        if "loss" in told:
            self._metrics.training_loss.set(told["loss"])

    def _new_assessor(self) -> Assessor:
        """One for each thread that asks."""
        assessor = open_assessor(self._settings)
        self._closing.append(assessor.close)
        return assessor

    def _topic_writer(self) -> TopicWriter:
        if self._writer is None:
            self._writer = open_writer(self._settings)
            self._closing.append(self._writer.close)
        return self._writer

    def _ready(self) -> None:
        """A real read and write, and ingest that polls. Raises when one of them fails."""
        with self._database.transaction() as tx:
            tx.execute("SELECT count FROM commits").fetchall()
        if time.monotonic() - self._ingest.last_poll > 60:
            raise FlywheelError("ingest has not polled for a minute")
