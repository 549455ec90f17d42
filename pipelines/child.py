"""How a short-lived child (training, answering) talks to the learner that started it.

One JSON object a line on standard output: `announcement`, `progress`, `done` or `failed`; an
empty object is a heartbeat. Standard input is the learner's life line: when it ends, so does
the child.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TypeVar

import msgspec

from pipelines.work import Host, Specification

HEARTBEAT_SECONDS = 1.0
Kind = TypeVar("Kind")


class Channel:
    """The child's end. Created first thing, before anything slow is imported."""

    def __init__(self) -> None:
        # Libraries print to standard output; the lines of the protocol get a copy of their own.
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._lock = Lock()
        self._last_told = 0.0
        self._started: dict[str, tuple[float, int]] = {}  # when, and at which step
        Thread(target=self._beat, daemon=True).start()
        Thread(target=self._end_with_parent, daemon=True).start()

    def progress(self, phase: str, step: int, total: int, **facts: float) -> None:
        """Tell how far a phase is; told at most ten times a second, the last step always."""
        now = time.monotonic()
        started, first = self._started.setdefault(phase, (now, step))
        if step < total and now - self._last_told < 0.1:
            return
        self._last_told = now
        rate = (step - first) / (now - started) if now > started else 0.0
        self._say(
            progress={
                "phase": phase,
                "step": step,
                "total": total,
                "examples_per_second": round(rate, 1),
                "seconds_left": round((total - step) / rate, 1) if rate else None,
                **facts,
            }
        )

    def announce(self, sentence: str) -> None:
        """What is about to be done: once, for the log."""
        self._say(announcement=sentence)

    def done(self, **result: Any) -> None:
        self._say(done=result)

    def failed(self, reason: str) -> None:
        self._say(failed=reason)

    def _say(self, **message: Any) -> None:
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            self._say()

    @staticmethod
    def _end_with_parent() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held at exit
            pass
        os._exit(1)


def run_child(kind: type[Kind], do: Callable[[Kind, Host, Channel], Mapping[str, Any]]) -> None:
    """Do the work of the specification named on the command line, and report how it ended."""
    channel = Channel()
    told = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Specification)
    try:
        result = do(msgspec.json.decode(told.work, type=kind), told.host, channel)
    except MemoryError:
        channel.failed("out of memory")
        sys.exit(1)
    except Exception as error:  # the top of the process: the reason must reach the operator
        channel.failed(f"{type(error).__name__}: {error}")
        raise
    channel.done(**result)
