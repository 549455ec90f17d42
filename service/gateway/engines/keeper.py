"""The thread behind an engine: takes jobs in turn, and keeps the process alive."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import structlog

from pipelines.errors import ArtifactDamaged
from service.gateway.engines.base import EngineFailed
from service.gateway.engines.process import Ended, EngineProcess, Said
from service.metrics.gateway import GatewayMetrics

log = structlog.get_logger()

CLOSED = "the engine is closed"
STABLE_SECONDS = 60.0  # up for so long, an engine's next end is a first one again


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How long an engine may take, and how much may wait for it."""

    start_seconds: float = 180.0
    load_seconds: float = 60.0
    read_seconds: float = 30.0
    first_pause: float = 0.5  # before it is started again; doubled each time
    longest_pause: float = 30.0
    waiting: int = 64  # texts of apps
    patient: int = 1024  # texts that wait for those


class Rank(IntEnum):
    """Whose turn comes first."""

    SWAP = 0  # one at a time, so that it never holds up more than that
    APP = 1
    PATIENT = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    rank: Rank
    do: str
    name: str
    texts: Sequence[str] = ()
    folder: Callable[[], Path] | None = None  # of a load: opens and verifies
    future: "Future[Any]" = field(default_factory=Future)


class _Stop(BaseException):
    """Nobody needs the engine any more. No failure, so no `except Exception` may catch it."""


class Keeper:
    """One chat model's process, and who waits for it.

    Jobs, the process's lines and the call to stop come through one inbox, so nothing else is
    shared with other threads. Its `put` may be called even by a finalizer.
    """

    def __init__(
        self,
        digest: str,
        base: Callable[[], Path],
        metrics: GatewayMetrics,
        threads: int,
        limits: EngineLimits,
    ) -> None:
        self._digest = digest
        self._base = base
        self._metrics = metrics
        self._threads = threads
        self._limits = limits
        self._inbox: SimpleQueue[Job | Said | Ended | None] = SimpleQueue()
        self._queues: dict[Rank, deque[Job]] = {rank: deque() for rank in Rank}
        self._adapters: dict[str, Callable[[], Path]] = {}  # those that are to be there
        self._process: EngineProcess | None = None
        self._stopped = False
        self._up_since = 0.0
        self._ends = 0  # in a row
        self.up = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process else None

    def put(self, job: Job) -> None:
        self._inbox.put(job)
        if self._stopped:  # nobody is left to look
            self._fail_unseen()

    def stop(self) -> None:
        self._inbox.put(None)

    def run(self) -> None:
        try:
            while True:
                try:
                    self._take(self._next())
                except EngineFailed as error:
                    self._come_back(error)
        except _Stop:
            pass
        finally:
            self._end()
            self._fail_queued(EngineFailed(CLOSED))
            self._stopped = True
            self._fail_unseen()

    def _take(self, job: Job) -> None:
        """Do what is asked. Raises `EngineFailed` when the process did not survive it."""
        if not job.future.set_running_or_notify_cancel():
            return  # its request is gone
        try:
            job.future.set_result(self._do(job))
        except (EngineFailed, _Stop) as error:
            job.future.set_exception(EngineFailed(str(error) or CLOSED))
            raise
        except Exception as error:  # the process said no, or a folder is damaged
            job.future.set_exception(error)

    def _do(self, job: Job) -> Any:
        if job.do == "load":
            assert job.folder is not None
            if self._process is None:
                self._start()
            self._load(job.name, job.folder)
            self._adapters[job.name] = job.folder
            return None
        if job.do == "unload":
            if self._adapters.pop(job.name, None) is not None and self._process is not None:
                self._ask(self._limits.load_seconds, do="unload", name=job.name)
            return None
        started = time.perf_counter()
        request = {"do": "read", "name": job.name, "texts": list(job.texts)}
        replies = self._ask(self._limits.read_seconds, **request)
        self._metrics.model_seconds.observe(time.perf_counter() - started)
        self._metrics.model_batch.observe(len(job.texts))
        return replies

    def _start(self) -> None:
        """Start the process and wait until the chat model is in its memory."""
        base = self._base()
        self._process = EngineProcess(base, self._threads, self._inbox.put)
        said = self._hear(self._limits.start_seconds)
        if "ready" not in said:
            raise EngineFailed(str(said.get("failed", "it speaks another protocol")))
        self._process.note_ready()
        self.up = True
        self._up_since = time.monotonic()
        self._metrics.engines.inc()
        log.info(
            "engine_started",
            chat_model=self._digest[:12],
            pid=self._process.pid,
            adapters=len(self._adapters),
            **said["ready"],
        )

    def _load(self, name: str, folder: Callable[[], Path]) -> None:
        opened = str(folder().resolve())
        self._ask(self._limits.load_seconds, do="load", name=name, folder=opened)

    def _ask(self, seconds: float, **request: Any) -> Any:
        """The process's answer to one request, which is the only one under way."""
        if self._process is None:
            raise EngineFailed("the engine is away")
        number = self._process.send(request)
        said = self._hear(seconds)
        if said.get("id") != number:
            raise EngineFailed("the engine answered something else")
        if "error" in said:
            kind = ArtifactDamaged if said.get("damaged") else RuntimeError
            raise kind(said["error"])
        return said["result"]

    def _come_back(self, error: EngineFailed) -> None:
        """After an end: nobody waits in vain, and the process is started again, ever later."""
        while True:
            stable = self.up and time.monotonic() - self._up_since > STABLE_SECONDS
            self._ends = 1 if stable else self._ends + 1
            self._end()
            self._metrics.engine_failures.labels(error.reason).inc()
            self._fail_queued(error)
            pause = self._limits.first_pause * 2.0 ** min(self._ends - 1, 16)
            pause = min(pause, self._limits.longest_pause)
            log.error(
                "engine_ended",
                chat_model=self._digest[:12],
                reason=error.reason,
                error=str(error),
                seconds_to_restart=pause if self._adapters else None,
            )
            self._pause(pause, error)
            if not self._adapters:
                return  # the next load starts it
            try:
                self._start()
                self._load_again()
                return
            except EngineFailed as again:
                error = again
            except Exception as problem:  # of the artifact, or of the host
                error = EngineFailed(f"{type(problem).__name__}: {problem}")

    def _load_again(self) -> None:
        for name, folder in list(self._adapters.items()):
            try:
                self._load(name, folder)
            except EngineFailed:
                raise
            except Exception as error:  # its requests fail; those of the others need not
                log.error("adapters_not_loaded", chat_model=self._digest[:12], error=str(error))

    def _pause(self, seconds: float, error: EngineFailed) -> None:
        """Wait, and let nobody else wait with us."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._receive(left)
            self._fail_queued(error)

    def _fail_queued(self, error: EngineFailed) -> None:
        for queue in self._queues.values():
            while queue:
                job = queue.popleft()
                if job.do == "unload":
                    self._adapters.pop(job.name, None)
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(EngineFailed(str(error), error.reason))

    def _fail_unseen(self) -> None:
        """The same for what came after the end."""
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            if isinstance(message, Job) and message.future.set_running_or_notify_cancel():
                message.future.set_exception(EngineFailed(CLOSED))

    def _next(self) -> Job:
        """The job whose turn it is. Waits for one."""
        while True:
            while not self._inbox.empty():
                self._receive(0.0)
            for queue in self._queues.values():
                if queue:
                    return queue.popleft()
            self._receive(None)

    def _hear(self, seconds: float) -> dict[str, Any]:
        """The next line of the process. Raises `EngineFailed` when it comes too late."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            said = self._receive(left)
            if said is not None:
                return said
        raise EngineFailed(f"no answer within {seconds:g} seconds", "hung")

    def _receive(self, seconds: float | None) -> dict[str, Any] | None:
        """Take one message from the inbox: queue a job, or return the process's line."""
        try:
            message = self._inbox.get(timeout=seconds)
        except Empty:
            return None
        match message:
            case None:
                raise _Stop
            case Job():
                self._queues[message.rank].append(message)
            case Ended() if message.process is self._process:
                raise EngineFailed(message.process.why_ended())
            case Said() if message.process is self._process:
                return message.line
        return None

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None
        if self.up:
            self.up = False
            self._metrics.engines.dec()
