"""The learner: builds its parts, starts them in order, drains them in reverse."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from pipelines.errors import ExitCode, FlywheelError
from service.console.app import console_app
from service.host.logs import set_up_logs
from service.host.memory import collect_rarely, hoard_less
from service.host.process import bind, drain_on_signals, lock_data_folder
from service.keys import open_keys, operator_token
from service.learner.assessor import Assessor, open_assessor
from service.learner.base_models import BaseModels
from service.learner.encoder import publish_encoder
from service.learner.evaluation import Evaluating
from service.learner.executor import LocalExecutor, places_of
from service.learner.gateway_api import gateway_routes
from service.learner.gateways import Gateways
from service.learner.ingest import Ingest
from service.learner.jobs import Jobs, Parts
from service.learner.leases import LeaseBook
from service.learner.regression import Regression
from service.learner.relabel import Relabel
from service.learner.repeats import Repeats
from service.learner.retention import Retention
from service.learner.sampling import Sampling, first_purse
from service.learner.teacher import Teacher
from service.learner.training import Training
from service.learner.unusable import UnusableAnswers
from service.learner.watch import Watch
from service.learner.workshop import Workshop
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.notify import Notifier, Seen
from service.operator.operations import Operations
from service.operator.status import Progress
from service.rules import first_policy, intake_rules
from service.settings import Settings
from service.topics.opening import open_reader, open_writer
from storage.artifacts import Artifacts
from storage.database import Database
from storage.durable import write_json
from storage.ledger import Ledger
from storage.migrate import migrate
from storage.traffic import forget_offsets

log = structlog.get_logger()

SILENT_INGEST_SECONDS = 60


def run_learner(
    settings: Settings, *, reset_offsets: bool = False, stop: Event | None = None
) -> ExitCode:
    """Run until a signal (or `stop`), then drain. Raises `FlywheelError` when it cannot start."""
    hoard_less()
    collect_rarely()
    set_up_logs("learner")
    stop = stop or Event()
    drain_on_signals(stop)
    with lock_data_folder(settings.data_dir):
        learner = Learner(settings, stop)
        try:
            learner.start(reset_offsets=reset_offsets)
            stop.wait()
        finally:
            learner.close()
        return learner.exit_code


class Learner:
    """Everything one learner owns. What is built or started is closed in reverse."""

    def __init__(
        self,
        settings: Settings,
        stop: Event,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._now = now
        self._closing = ExitStack()
        self._deadline = float("inf")  # of the drain, once it has begun
        self.exit_code = ExitCode.OK
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        settings, own = self._settings, self._closing.callback
        self._board = Board()
        self._listener = bind(settings.learner.host, settings.learner.port, "learner")
        own(self._listener.close)
        self._port = self._listener.getsockname()[1]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._metrics = LearnerMetrics(self._registry)
        self._keys = open_keys(settings.data_dir, settings.gateway.learner_token.get_secret_value())
        self._tasks = {name: settings.task_of(name) for name in settings.tasks}
        self._database = Database(
            settings.folder.database, memory_mb=settings.learner.database_memory_mb
        )
        own(self._database.close)
        for name in migrate(self._database):
            log.info("migration_applied", name=name)
        self._ledger = Ledger(settings.folder.ledger)
        own(self._ledger.close)
        self._artifacts = Artifacts(settings.folder.artifacts)
        self._sampling = Sampling(
            {name: first_policy(settings, self._keys.sampling) for name in self._tasks},
            first_purse(settings),
        )
        self._operations = Operations(
            database=self._database,
            ledger=self._ledger,
            artifacts=self._artifacts,
            settings=settings,
            keys=self._keys,
            board=self._board,
            metrics=self._metrics,
            now=self._now,
            open_writer=lambda: open_writer(settings),
        )
        own(self._operations.close)
        self._leases = LeaseBook(self._database, settings.budget, now=self._now)
        self._parts = self._build_parts()
        self._jobs = Jobs(
            self._parts,
            self._build_watch,
            settings=settings,
            database=self._database,
            metrics=self._metrics,
            board=self._board,
            now=self._now,
        )

    def _build_parts(self) -> Parts:
        settings = self._settings
        encoder = publish_encoder(settings, self._artifacts)
        places = places_of(settings, self._artifacts)
        executor = LocalExecutor(
            settings.trainer, places, self._note_progress, self._note_end, stop=self._stop
        )
        shop = Workshop(
            database=self._database,
            artifacts=self._artifacts,
            executor=executor,
            settings=settings,
            tasks=self._tasks,
            encoder=encoder,
            bases=BaseModels(settings, self._artifacts, executor, encoder),
            metrics=self._metrics,
            now=self._now,
        )
        teacher = Teacher(
            settings.teacher, settings.budget, self._ledger, now=self._now, on_call=self._note_call
        )
        return Parts(
            training=Training(shop),
            evaluating=Evaluating(shop),
            relabel=Relabel(
                budget=settings.budget,
                database=self._database,
                ledger=self._ledger,
                teacher=teacher,
                tasks=self._tasks,
                terms=settings.teacher.terms,
                metrics=self._metrics,
                unusable=UnusableAnswers(self._board, self._now),
                now=self._now,
                stop=self._stop,
            ),
            repeats=Repeats(
                budget=settings.budget,
                database=self._database,
                ledger=self._ledger,
                teacher=teacher,
                tasks=self._tasks,
                now=self._now,
                stop=self._stop,
            ),
            regression=Regression(
                database=self._database,
                settings=settings.rollback,
                answers=self._new_assessor(),
                live=self._board.live_task,
                metrics=self._metrics,
            ),
            retention=Retention(self._database, self._artifacts, settings, self._now),
            operations=self._operations,
            leases=self._leases,
            teacher=teacher,
        )

    def _build_watch(self, start_training: Callable[[str, str], None]) -> Watch:
        return Watch(
            database=self._database,
            artifacts=self._artifacts,
            ledger=self._ledger,
            settings=self._settings,
            tasks=self._tasks,
            sampling=self._sampling,
            metrics=self._metrics,
            board=self._board,
            start_training=start_training,
            to_ask_again=self._parts.repeats.waiting,
            now=self._now,
        )

    # Life.

    def start(self, *, reset_offsets: bool = False) -> None:
        """Recover, publish, then console, schedules and ingest, in this order."""
        interrupted = self._parts.training.recover()
        self._parts.relabel.recover()
        self._operations.recover()
        self._jobs.check_champions()
        self._serve_console()
        self._jobs.start()
        self._closing.callback(self._jobs.stop)
        self._jobs.look_now()
        ingest = self._build_ingest(reset_offsets)
        ingest.start()
        self._thread("ingest", lambda: ingest.run(self._stop))
        notifier = self._build_notifier()
        self._thread("notify", lambda: notifier.run(self._stop))
        for task in interrupted:
            self._jobs.train_soon(task, "an interrupted training goes on")
        log.info("learner_started", port=self._port, tasks=sorted(self._tasks))

    def close(self) -> None:
        """In reverse: ingest finishes its batch, schedules, console, then the stores."""
        self._stop.set()  # which ends a trainer, too
        log.info("learner_draining")
        self._deadline = time.monotonic() + self._settings.learner.drain_timeout.total_seconds()
        self._closing.close()
        log.info("learner_stopped", exit_code=self.exit_code.name)

    def _serve_console(self) -> None:
        app = console_app(
            self._operations,
            operator_token(self._settings.data_dir),
            self._settings,
            gateway_routes(
                keys=self._keys,
                artifacts=self._artifacts,
                live_path=self._settings.folder.live,
                leases=self._leases,
                on_status=Gateways(self._database, self._board, self._now).heard,
            ),
            registry=self._registry,
            ready=self._ready,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                loop="asyncio",
                http="h11",  # bounds what it reads before anybody has shown a token
            )
        )
        self._thread("console", lambda: server.run(sockets=[self._listener]))

        def end() -> None:
            app.state.stopping.set()
            server.should_exit = True

        self._closing.callback(end)
        note = self._settings.folder.note("learner")
        note.parent.mkdir(exist_ok=True)
        write_json(
            note, {"host": self._settings.learner.host, "port": self._port, "pid": os.getpid()}
        )

    def _build_ingest(self, reset_offsets: bool) -> Ingest:
        settings = self._settings
        reader = open_reader(settings)
        self._closing.callback(reader.close)
        if reset_offsets:
            with self._database.transaction() as tx:
                forget_offsets(tx, reader.name)
            log.warning("offsets_reset", topic=reader.name)
        return Ingest(
            reader=reader,
            database=self._database,
            rules=intake_rules(settings, self._keys),
            sampling=self._sampling,
            assessor=self._new_assessor(),
            group_salt=self._keys.sampling,
            settings=settings.ingest,
            data_dir=settings.data_dir,
            metrics=self._metrics,
            board=self._board,
            now=self._now,
        )

    def _build_notifier(self) -> Notifier:
        board, operations = self._board, self._operations
        return Notifier(
            self._settings,
            lambda: Seen.of(operations.status().needs, teacher_refuses=board.teacher_refuses),
            self._metrics,
            console=self._settings.learner.public_url or f"http://127.0.0.1:{self._port}",
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
        self._closing.callback(lambda: thread.join(max(0.1, self._deadline - time.monotonic())))

    # What the parts tell.

    def _new_assessor(self) -> Assessor:
        """One for each thread that asks."""
        assessor = open_assessor(self._settings)
        self._closing.callback(assessor.close)
        return assessor

    def _note_call(self, outcome: str, said: str) -> None:
        self._metrics.teacher_calls.labels(outcome=outcome).inc()
        self._board.note_call(outcome, said)

    def _note_end(self) -> None:
        self._board.progress = None

    def _note_progress(self, told: Mapping[str, Any]) -> None:
        self._board.progress = Progress(
            step=told["step"],
            total=told["total"],
            examples_per_second=told["examples_per_second"],
            seconds_left=told["seconds_left"],
            phase=told["phase"],
            loss=told.get("loss"),
        )
        self._metrics.training_progress.set(told["step"] / max(1, told["total"]))
        self._metrics.training_rate.set(told["examples_per_second"])
        self._metrics.training_seconds_left.set(told["seconds_left"] or 0)
        if "loss" in told:
            self._metrics.training_loss.set(told["loss"])

    def _ready(self) -> None:
        """A real read and write, and ingest that polls. Raises when one of them fails."""
        with self._database.transaction() as tx:
            tx.execute("SELECT count FROM commits").fetchall()
        if time.monotonic() - self._board.ingest.polled_at > SILENT_INGEST_SECONDS:
            raise FlywheelError("ingest has not polled for a minute")
