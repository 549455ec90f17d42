"""Runs one gateway and one learner on this host, restarts what dies, and ends with both.

Or a gateway alone, for a sidecar whose container must not end.

Each child holds the reading end of a pipe: when the supervisor is gone, however it went, the
pipe ends and so does the child. No orphan keeps a port or the database.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import FrameType

import structlog

from pipelines.errors import ExitCode, SettingsError
from service.host.logs import set_up_logs
from service.host.notify_systemd import ServiceManager
from service.host.probe import answers
from service.sections import GatewaySettings
from service.settings import Settings
from storage.failpoints import passing

log = structlog.get_logger()

LIFE_LINE = "FLYWHEEL_LIFE_LINE"
CHECK_SECONDS = 0.1
# A child that ends this soon after its first start could not start: that is for a person. One
# that lives longer is well, and is started again at once when it dies.
START_SECONDS = 10.0
MAX_BACK_OFF_SECONDS = 30.0
# What a child may take beyond its own drain timeout.
GRACE_SECONDS = 5.0
READY_SECONDS = 0.5
# What will be the same at the next try.
HOPELESS = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.SETTINGS,
        ExitCode.PORT_IN_USE,
        ExitCode.DATA_LOCKED,
        ExitCode.DATA_DAMAGED,
        ExitCode.OFFSETS_LOST,
    }
)


@dataclass(slots=True)
class _Child:
    """One kept process. Mutable: it is started again and again."""

    name: str
    process: "subprocess.Popen[bytes]"
    started: float
    first: bool = True
    failures: int = 0
    restart_at: float | None = None


class Supervisor:
    """Keeps the children alive until told to stop."""

    def __init__(
        self,
        arguments: Sequence[str],
        drain_seconds: Mapping[str, float],
        *,
        gives_up: bool = True,
        data_dir: Path | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        """`drain_seconds` names the children, the gateway first, and how long each may drain."""
        self._arguments = list(arguments)
        self._drain_seconds = drain_seconds
        self._gives_up = gives_up
        self._data_dir = data_dir
        self._manager = manager or ServiceManager()
        self._ready = False
        self._tell_at = 0.0
        self._stop = Event()
        self._kill = False

    def run(self) -> ExitCode:
        """Until a signal. Ends with a child's exit code when that could not start."""
        self._catch_signals()
        children = [self._start(name) for name in self._drain_seconds]
        code = ExitCode.OK
        try:
            while not self._stop.wait(CHECK_SECONDS):
                hopeless = next(filter(None, map(self._look, children)), None)
                if hopeless is not None:
                    code = hopeless
                    break
                self._tell_manager(children[0])
        finally:
            self._manager.tell("STOPPING=1")
            self._end(children)
        return code

    def _tell_manager(self, gateway: _Child) -> None:
        """Ready once the gateway answers: it is all that apps wait for. Then alive, as it is."""
        now = time.monotonic()
        if not self._manager.listens or self._data_dir is None or now < self._tell_at:
            return
        # A dead one is our own concern: that must not cost the learner its work.
        dead = gateway.restart_at is not None or gateway.process.poll() is not None
        answered = not dead and answers(self._data_dir, "gateway", pid=gateway.process.pid)
        if not self._ready:
            self._tell_at = now + READY_SECONDS
            if answered:
                self._ready = True
                self._manager.tell("READY=1", "STATUS=The gateway answers.")
        elif self._manager.watchdog_seconds is not None:
            self._tell_at = now + self._manager.watchdog_seconds / 4
            if answered or dead:
                self._manager.tell("WATCHDOG=1")
        else:
            self._tell_at = float("inf")

    def _start(self, name: str) -> _Child:
        return _Child(name=name, process=self._spawn(name), started=time.monotonic())

    def _spawn(self, name: str) -> "subprocess.Popen[bytes]":
        passing("supervisor.starting")
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *self._arguments, name],
            stdin=subprocess.PIPE,
            env=with_life_line(),
            start_new_session=True,  # Ctrl-C reaches us alone; we pass it on once
        )
        passing("supervisor.started")
        log.info("child_started", child=name, pid=process.pid)
        return process

    def _look(self, child: _Child) -> ExitCode | None:
        """Restart a dead child when its time has come; a code when starting is hopeless."""
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                child.process, child.started = self._spawn(child.name), now
                child.restart_at = None
            return None
        code = child.process.poll()
        if code is None:
            if child.failures and now - child.started > START_SECONDS:
                child.failures = 0
            return None
        early = child.first and now - child.started < START_SECONDS
        child.first = False
        if early and self._gives_up and code in HOPELESS:
            return ExitCode(code)
        wait = 0.0 if child.failures == 0 else min(MAX_BACK_OFF_SECONDS, 2.0**child.failures / 2)
        child.failures += 1
        child.restart_at = now + wait
        passing("supervisor.bereft")
        log.error("child_died", child=child.name, exit_code=code, restart_in_seconds=wait)
        return None

    def _end(self, children: Sequence[_Child]) -> None:
        """The learner first: the gateway answers until the last moment."""
        for child in reversed(children):
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + max(self._drain_seconds.values()) + GRACE_SECONDS
        for child in children:
            while child.process.poll() is None and time.monotonic() < deadline and not self._kill:
                time.sleep(CHECK_SECONDS)
            if child.process.poll() is None:
                log.error("child_killed", child=child.name)
                os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
        log.info("supervisor_stopped")

    def _catch_signals(self) -> None:
        """The first signal drains, the second ends at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._kill = self._stop.is_set()
            self._stop.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)


def run(settings: Settings, arguments: Sequence[str] = ()) -> ExitCode:
    """Supervise; `arguments` are those by which the children find the same settings."""
    set_up_logs("supervisor")
    drain_seconds = {
        "gateway": settings.gateway.drain_timeout.total_seconds(),
        "learner": settings.learner.drain_timeout.total_seconds(),
    }
    manager = ServiceManager.of(os.environ)
    supervisor = Supervisor(arguments, drain_seconds, data_dir=settings.data_dir, manager=manager)
    return supervisor.run()


def keep_gateway(load: Callable[[], Settings], arguments: Sequence[str] = ()) -> ExitCode:
    """A gateway alone, started again whatever it ended with, until a signal.

    Settings that cannot be used are the gateway's to explain: it reads them anew at each start.
    """
    set_up_logs("supervisor")
    data_dir: Path | None = None
    drain = GatewaySettings().drain_timeout
    with suppress(SettingsError):
        settings = load()
        data_dir, drain = settings.data_dir, settings.gateway.drain_timeout
    supervisor = Supervisor(
        arguments,
        {"gateway": drain.total_seconds()},
        gives_up=False,
        data_dir=data_dir,
        manager=ServiceManager.of(os.environ),
    )
    return supervisor.run()


def with_life_line() -> dict[str, str]:
    """The environment of a child that ends when the pipe to its standard input does."""
    return {**os.environ, LIFE_LINE: "1"}


def hold_life_line() -> None:
    """In a child: end, by draining, when the supervisor's end of the pipe is closed."""
    if not os.environ.pop(LIFE_LINE, None):
        return

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait, name="life-line", daemon=True).start()
