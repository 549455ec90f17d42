"""Log lines: one event name with fields; for people on a terminal, JSON everywhere else."""

import logging
import sys
from typing import Any

import structlog


def set_up_logs(process: str) -> None:
    """Configure logging of this process; `process` is in every line."""
    on_terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=True)
        if on_terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            _name_process(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; theirs count from warnings on.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    # Its warnings are of missed ticks, which the schedule records itself.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def _name_process(process: str) -> Any:
    """Not by context variables: a new thread would start without them."""

    def name(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        return {"process": process, **event}

    return name
