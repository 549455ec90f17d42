"""One engine process, from its start to its end: pipes, environment, and what it said last."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from service.host.process import child_environment

MODULE = "pipelines.students.engine"
GRACE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A line of the protocol."""

    process: "EngineProcess"
    line: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """There are no more lines."""

    process: "EngineProcess"


class EngineProcess:
    """`python -m pipelines.students.engine`. What it says goes to `tell`, from another thread."""

    def __init__(self, base: Path, threads: int, tell: Callable[[Said | Ended], None]) -> None:
        self._tell = tell
        self._numbers = count()
        self._errors: list[str] | None = []
        self._specification = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115
        json.dump({"base": str(base.resolve()), "threads": threads}, self._specification)
        self._specification.flush()
        self._child = subprocess.Popen(
            [sys.executable, "-m", MODULE, self._specification.name],
            stdin=subprocess.PIPE,  # its end is the child's signal that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(threads),
            start_new_session=True,
        )
        # A child that hangs does not read: only a thread of its own may wait for that.
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        pipes = (self._write, self._listen, self._drain)
        self._threads = [Thread(target=pipe, daemon=True) for pipe in pipes]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def note_ready(self) -> None:
        """From here on it reads people's texts, and nothing that it prints is kept."""
        self._errors = None
        self._specification.close()

    def send(self, request: dict[str, Any]) -> int:
        """Ask; the number comes back with the answer."""
        number = next(self._numbers)
        self._requests.put(json.dumps({"id": number, **request}).encode() + b"\n")
        return number

    def why_ended(self) -> str:
        """What is known about its end, as a sentence."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(GRACE_SECONDS)
        code = self._child.returncode
        if code is None:
            return "the engine has closed its output"
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        self._threads[2].join(GRACE_SECONDS)
        last = self._errors[-1] if self._errors else "nothing was said"
        return f"ended with code {code}: {last}"

    def end(self) -> None:
        """Kill it, and all that it started: it has nothing to put in order."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._requests.put(None)
        for thread in self._threads:
            thread.join(GRACE_SECONDS)
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                with suppress(OSError):  # what was not written yet has no reader
                    stream.close()
        self._specification.close()

    def _write(self) -> None:
        assert self._child.stdin is not None
        while (request := self._requests.get()) is not None:
            with suppress(OSError):  # it has ended, which its output tells
                self._child.stdin.write(request)
                self._child.stdin.flush()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            try:
                self._tell(Said(self, dict(json.loads(line))))
            except (ValueError, TypeError):
                self._tell(Said(self, {"failed": "it speaks another protocol"}))
        self._tell(Ended(self))

    def _drain(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            errors = self._errors
            if errors is not None:
                errors.append(line.decode(errors="replace").rstrip()[:500])
                del errors[:-20]
