"""Watches what is published, and lets the generations follow. One thread."""

import threading
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

import structlog

from pipelines.errors import ArtifactDamaged, DataDamaged, FlywheelError
from pipelines.students.families import FAMILIES
from service.gateway.generations import Generations
from service.gateway.learner_client import LearnerClient
from service.host.memory import give_back
from service.metrics.gateway import GatewayMetrics
from service.planes import EVERYTHING
from storage.artifacts import Artifacts, Kind
from storage.durable import write_durably
from storage.folder import DataFolder
from storage.live import Live, LiveStudent, decode_live

log = structlog.get_logger()

LOOK_SECONDS = 0.1  # at the file; asking over the network has its own setting
RETRY_SECONDS = 3.0  # doubled with each failure in a row: to load a chat model costs a lot
LONGEST_RETRY_SECONDS = 60.0
TIDY_SECONDS = 10.0  # what batches of texts have left behind in memory is given back


class LiveFile:
    """`live.json` in the folder that learner and gateway share."""

    interval = LOOK_SECONDS

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> bytes | None:
        """The file when it is another one than at the last call."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return None
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        self._seen = seen
        return content

    def prepare(self, live: Live) -> None:
        """The artifacts are here already."""

    def accepted(self, content: bytes) -> None:
        """The file is here already."""

    def forget(self) -> None:
        self._seen = None


class LiveOverHttp:
    """`live.json` and artifacts from a learner elsewhere, kept here for the next start."""

    def __init__(
        self, learner: LearnerClient, artifacts: Artifacts, folder: DataFolder, *, interval: float
    ) -> None:
        self.interval = interval
        self._learner = learner
        self._artifacts = artifacts
        # Not live.json: that is the learner's, should it share this folder.
        self._kept = folder.fetched_live
        self._scratch = folder.fetched
        self._started = False

    def read(self) -> bytes | None:
        """What the learner publishes. At the start what was kept comes first."""
        if not self._started:
            self._started = True
            # What a killed gateway had begun to fetch: it may be hundreds of megabytes.
            rmtree(self._scratch, ignore_errors=True)
            if self._kept.exists():
                return self._kept.read_bytes()
        return self._learner.live()

    def prepare(self, live: Live) -> None:
        """Fetch what is missing, and again what is damaged."""
        for task in live.tasks.values():
            for student in (task.champion, task.previous):
                if student is not None:
                    self._fetch(student)

    def accepted(self, content: bytes) -> None:
        write_durably(self._kept, content)

    def forget(self) -> None:
        self._learner.forget_live()

    def _fetch(self, student: LiveStudent) -> None:
        wanted: tuple[tuple[Kind, str], ...] = (
            (FAMILIES[student.family].base_kind, student.base),
            ("student", student.student),
            ("report", student.report),
        )
        for kind, digest in wanted:
            if not self._is_whole(kind, digest):
                self._learner.fetch(kind, digest, self._artifacts, self._scratch)

    def _is_whole(self, kind: Kind, digest: str) -> bool:
        """Whether the artifact is here as it was published; a damaged one is cleared away."""
        try:
            self._artifacts.open(kind, digest)
        except (ArtifactDamaged, ValueError, KeyError):
            rmtree(self._artifacts.path(kind, digest), ignore_errors=True)
            return False
        return True


class Watcher:
    """Follows one source of `live.json`. A failed look or load changes nothing that serves."""

    def __init__(
        self,
        source: LiveFile | LiveOverHttp,
        generations: Generations,
        metrics: GatewayMetrics,
        *,
        key: bytes,
    ) -> None:
        self._source = source
        self._generations = generations
        self._metrics = metrics
        self._key = key
        self._serial = -1
        self._retry_at = float("inf")
        self._tidy_at = 0.0
        self._refusals = 0  # of what is published now, in a row
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-watcher", daemon=True)
        self._looked = threading.Event()
        self.problem: str | None = None  # why what is published cannot even be read

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    @property
    def ready(self) -> bool:
        """Whether what is published has been looked at once."""
        return self._looked.is_set()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> dict[str, Any]:
        """What is served, and what should be but is not."""
        serving = {
            name: served.champion.version
            for name, served in self._generations.current.items()
            if served.champion
        }
        failed = dict(self._generations.failures)
        if self.problem:
            failed[EVERYTHING] = self.problem
        return {"serving": serving, "failed": failed, "serial": self._serial}

    def _run(self) -> None:
        while True:
            self._look()
            self._looked.set()
            self._generations.note_resident()
            if time.monotonic() >= self._tidy_at:
                self._tidy_at = time.monotonic() + TIDY_SECONDS
                give_back()
            if self._stopping.wait(self._source.interval):
                return

    def _look(self) -> None:
        """Read and follow what is published."""
        if time.monotonic() >= self._retry_at:
            self._retry_at = float("inf")
            self._source.forget()
        try:
            content = self._source.read()
            if content is None:
                return
            live = decode_live(content, self._key)
            self._refuse_older(live)
            self._source.prepare(live)
        except (FlywheelError, OSError) as error:
            self._note_problem(error)
            return
        self.problem = None
        if live.serial != self._serial:
            self._refusals = 0
        self._serial = live.serial
        self._source.accepted(content)
        if self._generations.apply(live):
            self._refusals = 0
            return
        pause = min(RETRY_SECONDS * 2.0 ** min(self._refusals, 10), LONGEST_RETRY_SECONDS)
        self._retry_at = time.monotonic() + pause
        self._refusals += 1

    def _refuse_older(self, live: Live) -> None:
        # Somebody who can write the file, but not sign it, could put an old one back.
        if live.serial < self._serial:
            raise DataDamaged(
                f"live.json is older (serial {live.serial}) than what is served "
                f"(serial {self._serial}); it is not followed"
            )

    def _note_problem(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if str(error) == self.problem:
            return
        self.problem = str(error)
        reason = (
            "artifact"
            if isinstance(error, ArtifactDamaged)
            else "signature"
            if isinstance(error, DataDamaged)
            else "unreachable"
        )
        self._metrics.swaps.labels(EVERYTHING, reason).inc()
        log.error("live_not_followed", reason=reason, error=str(error))
