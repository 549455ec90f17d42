"""How a short-lived child (training, answering) talks to the learner that started it.

One JSON object a line on standard output: `announcement`, `progress`, `done` or `failed`; an
empty object is a heartbeat. Standard input is the learner's life line: when it ends, so does
the child.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread
from typing import Any

HEARTBEAT_SECONDS = 1.0


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file. Only a line feed ends a line: texts may hold other breaks."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def run_child(work: Callable[[dict[str, Any], Channel], dict[str, Any]]) -> None:
    """Run `work` on the JSON specification named on the command line, and report how it ended."""
    channel = Channel()
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    try:
        result = work(spec, channel)
    except MemoryError:
        channel.failed("out of memory")
        sys.exit(1)
    except Exception as error:  # the top of the process: the reason must reach the operator
        channel.failed(f"{type(error).__name__}: {error}")
        raise
    channel.done(**result)
