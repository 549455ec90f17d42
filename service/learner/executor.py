"""Executors do work that takes long: what one must do, and the local one, a child process.

The child gets a specification file and a scratch folder, no keys, no database; the learner
checks what came out. Whatever happens to it, the learner goes on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import IO, Any, Protocol, cast

import psutil
import structlog

from pipelines.errors import TrainingFailed, TrainingInterrupted
from pipelines.work import AnswerWork, Host, Input, TrainWork, Work, specification
from service.host.process import child_environment
from service.sections import TrainerSettings
from service.settings import Settings
from storage.artifacts import Artifacts, Kind

log = structlog.get_logger()

CHECK_SECONDS = 0.2
GRACE_SECONDS = 3.0

Progress = Mapping[str, Any]


class Executor(Protocol):
    """Does work somewhere: here, or on another machine that can read the artifacts."""

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop; then what it does not finish is no failure."""

    def offer(self, source: Input, path: Path) -> None:
        """Say where a base model that is no artifact lies on this host."""

    def run(self, work: Work, scratch: Path) -> dict[str, Any]:
        """Do it to its end, into `scratch`, and return what it reported as done.

        Raises `TrainingFailed` with the reason, `TrainingInterrupted` where it may go on later.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where this host keeps what work needs beside its inputs."""

    find: Callable[[Input], Path]  # an artifact, verified, or `ArtifactDamaged`
    vectors: Callable[[str], Path]  # by the encoder's content hash
    checkpoint: Callable[[str, str], Path]  # by task and name
    precision: Path


def places_of(settings: Settings, artifacts: Artifacts) -> Places:
    """In the data folder of an installation."""
    folder = settings.folder
    return Places(
        find=lambda one: artifacts.open(cast("Kind", one.kind), one.digest).path,
        vectors=folder.vectors,
        checkpoint=lambda task, name: folder.checkpoints(task) / name,
        precision=folder.precision,
    )


class LocalExecutor:
    """Starts children one after the other. `on_progress` hears what the present one tells."""

    def __init__(
        self,
        settings: TrainerSettings,
        places: Places,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_end: Callable[[], None] = lambda: None,
        *,
        stop: Event | None = None,
    ) -> None:
        self._settings = settings
        self._places = places
        self._sources: dict[Input, Path] = {}
        self._on_progress = on_progress
        self._on_end = on_end
        self._stopping = stop or Event()
        self._one_at_a_time = Lock()

    @property
    def threads(self) -> int:
        return self._settings.threads or os.cpu_count() or 1

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ends the present child and refuses another. Safe to call from any thread."""
        self._stopping.set()

    def run(self, work: Work, scratch: Path) -> dict[str, Any]:
        """The work in a child of this host."""
        return self.run_program(
            work.program, specification(work, self._host(work, scratch)), scratch
        )

    def offer(self, source: Input, path: Path) -> None:
        self._sources[source] = path

    def _find(self, wanted: Input) -> Path:
        path = self._sources.get(wanted) or self._places.find(wanted)
        return path.resolve()

    def _host(self, work: Work, scratch: Path) -> Host:
        encoder, checkpoint = "", ""
        if isinstance(work, TrainWork | AnswerWork):
            encoder = str(self._places.vectors(work.encoder.digest).resolve())
        if isinstance(work, TrainWork) and work.checkpoint:
            checkpoint = str(self._places.checkpoint(work.task, work.checkpoint).resolve())
        return Host(
            scratch=str(scratch.resolve()),
            inputs={one.name: str(self._find(one)) for one in work.inputs},
            threads=self.threads,
            vectors=encoder,
            precision=str(self._places.precision.resolve()),
            checkpoint=checkpoint,
        )

    def run_program(self, module: str, spec: bytes, scratch: Path) -> dict[str, Any]:
        """Run `python -m MODULE SPEC` to its end and return what it reported as done.

        Raises `TrainingFailed` with the reason when it fails, hangs, takes too long or too
        much memory, or when the learner stops. One child runs at a time; others wait.
        """
        with self._one_at_a_time:
            if self._stopping.is_set():
                raise TrainingInterrupted("the learner stops")
            return self._run(module, spec, scratch)

    def _run(self, module: str, spec: bytes, scratch: Path) -> dict[str, Any]:
        file = scratch.with_suffix(".spec.json")
        file.write_bytes(spec)
        child = self._start(module, file)
        log.info("trainer_started", module=module, pid=child.pid)
        lines: Queue[bytes | None] = Queue()
        assert child.stdout is not None
        assert child.stderr is not None
        errors: list[str] = []
        readers = [
            Thread(target=_read_lines, args=(child.stdout, lines), daemon=True),
            Thread(target=_read_errors, args=(child.stderr, errors), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            return self._follow(child, lines)
        except _Ended:
            _join(readers)  # its last words count
            raise _why_ended(child.returncode, errors) from None
        finally:
            _end(child)
            _join(readers)
            child.stdout.close()
            child.stderr.close()
            self._on_end()
            file.unlink(missing_ok=True)

    def _start(self, module: str, specification: Path) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(specification.resolve())],
            stdin=subprocess.PIPE,  # its end is the child's signal that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(self.threads),
            start_new_session=True,
        )
        # Serving comes first: the child takes what processors are left.
        with suppress(psutil.Error):
            psutil.Process(child.pid).nice(10)
        return child

    def _follow(
        self, child: "subprocess.Popen[bytes]", lines: "Queue[bytes | None]"
    ) -> dict[str, Any]:
        started = last_heard = time.monotonic()
        while True:
            try:
                line = lines.get(timeout=CHECK_SECONDS)
            except Empty:
                line = b""
            if line is None:
                child.wait()
                raise _Ended
            if line:
                last_heard = time.monotonic()
                message = _parse(line)
                if "done" in message:
                    return dict(message["done"])
                if "failed" in message:
                    raise TrainingFailed(str(message["failed"])[:500])
                if "announcement" in message:
                    log.info("training_announced", plan=message["announcement"])
                if "progress" in message:
                    self._on_progress(message["progress"])
            self._check_limits(child, started, last_heard)

    def _check_limits(
        self, child: "subprocess.Popen[bytes]", started: float, last_heard: float
    ) -> None:
        now = time.monotonic()
        if self._stopping.is_set():
            raise TrainingInterrupted("the learner stops")
        if now - started > self._settings.time_limit.total_seconds():
            raise TrainingFailed(
                f"took longer than trainer.time_limit ({self._settings.time_limit})"
            )
        if now - last_heard > self._settings.heartbeat_timeout.total_seconds():
            raise TrainingFailed("no sign of life within trainer.heartbeat_timeout")
        # Resident memory: a limit on address space would count mappings that cost nothing.
        megabytes = _resident_mb(child.pid)
        if megabytes > self._settings.memory_limit_mb:
            raise TrainingFailed(
                f"out of memory: {megabytes} MB resident, "
                f"trainer.memory_limit_mb is {self._settings.memory_limit_mb}"
            )


class _Ended(Exception):
    """The child's output has ended without a result."""


def _join(readers: Sequence[Thread]) -> None:
    """Until all was read; not for ever, because a grandchild may hold the pipe."""
    for reader in readers:
        reader.join(GRACE_SECONDS)


def _read_lines(stream: IO[bytes], lines: "Queue[bytes | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _read_errors(stream: IO[bytes], kept: list[str]) -> None:
    for line in stream:
        text = line.decode(errors="replace").rstrip()
        log.debug("child_said", line=text)
        kept.append(text)
        del kept[:-20]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        raise TrainingFailed("the child wrote something that is not its protocol") from None
    if not isinstance(message, dict):
        raise TrainingFailed("the child wrote something that is not its protocol")
    return message


def _why_ended(code: int, errors: list[str]) -> TrainingFailed:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return TrainingInterrupted(f"killed by {name}{hint}")
    said = errors[-1] if errors else "nothing was said"
    return TrainingFailed(f"ended with code {code} and no result: {said}")


def _resident_mb(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss // 2**20)
    except psutil.Error:
        return 0


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Terminate, then kill, the child and all that it started."""
    assert child.stdin is not None
    child.stdin.close()
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):  # also when the child itself is gone
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
