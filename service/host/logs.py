"""Log lines: an event's name, the same sentence each time, and fields.

For people on a terminal, JSON everywhere else, and one line an event. What libraries say is put
into the same shape.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import structlog

from service.host.log_sentences import SENTENCES

Line = MutableMapping[str, Any]
Processor = Callable[[Any, str, Line], Line]

FIRST = ("timestamp", "level", "process", "event", "sentence")
# Each try of the same thing says these: a line at first, then fewer and fewer.
REPEATING = frozenset(
    {
        "broker_unavailable",
        "escalation_stopped",
        "ingest_disk_full",
        "job_failed",
        "notify_failed",
        "publication_waits",
        "teacher_call_failed",
        "tick_not_recorded",
    }
)
FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 1800.0
MAX_REMEMBERED = 500
NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?")
LONGEST_FIELD = 1000  # characters; a traceback may be longer


def set_up_logs(process: str) -> None:
    """Configure logging of this process; `process` is in every line."""
    on_terminal = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _complete(process),
        _shorten,
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=True, event_key="sentence", sort_keys=False)
        if on_terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[Repeats(), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Libraries log through the standard library; theirs count from warnings on.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(allow=["held_back"]),
                _by_a_library,
                *shared,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(Repeats())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Its warnings are of missed ticks, which the schedule records itself.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    # Its warnings are that a host is busy.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Log nothing below this level for a while: for a verb whose reader wants what it prints."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


class Repeats:
    """Holds back what is said again and again: the next line that is let through has the count.

    Two lines are the same when all their fields are; of libraries, when only numbers differ.
    Events of ours that are not tried again and again never lose a line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._seen: dict[str, tuple[float, float, int]] = {}  # last line, pause, held back

    def __call__(self, logger: Any, method: str, line: Line) -> Line:
        """As a processor of structlog."""
        if line.get("event") not in REPEATING:
            return line
        held = self._held_back(repr(sorted(line.items(), key=str)))
        if held is None:
            raise structlog.DropEvent
        return {**line, "held_back": held} if held else line

    def filter(self, record: logging.LogRecord) -> bool:
        """As a filter of the standard library's logging."""
        held = self._held_back(f"{record.name} {NUMBER.sub('', record.getMessage())}")
        if held:
            record.held_back = held
        return held is not None

    def _held_back(self, key: str) -> int | None:
        """How many lines were left out before this one; None: leave this one out too."""
        now = self._clock()
        with self._lock:
            if key not in self._seen and len(self._seen) >= MAX_REMEMBERED:
                self._seen.clear()
            last, pause, held = self._seen.get(key, (now, 0.0, 0))
            if pause and now - last < pause:
                self._seen[key] = (last, pause, held + 1)
                return None
            # Silent for long: it begins anew.
            again = pause and now - last < 3 * pause
            longer = min(LONGEST_PAUSE_SECONDS, 2 * pause) if again else FIRST_PAUSE_SECONDS
            self._seen[key] = (now, longer, 0)
            return held


def _complete(process: str) -> Processor:
    """Add process and sentence; what is read first comes first.

    Not by context variables: a new thread would start without them.
    """

    def complete(logger: Any, method: str, line: Line) -> Line:
        line["process"] = process
        line.setdefault("sentence", SENTENCES.get(line["event"], line["event"]))
        return {**{name: line[name] for name in FIRST if name in line}, **line}

    return complete


def _by_a_library(logger: Any, method: str, line: Line) -> Line:
    return {**line, "event": "library_said", "sentence": line["event"]}


def _shorten(logger: Any, method: str, line: Line) -> Line:
    """No field fills the log, whatever an error's message holds."""
    return {
        name: f"{value[:LONGEST_FIELD]} ..."
        if isinstance(value, str) and len(value) > LONGEST_FIELD
        else value
        for name, value in line.items()
    }
