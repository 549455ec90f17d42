"""`flywheel doctor`: what is wrong with an installation, and what to do about it.

Nothing is changed, nothing is bought. It works with the learner running and without.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.errors import FlywheelError
from service.care.doctor.finding import Finding, ok, problem, warning
from service.care.doctor.outside import look_at_broker, look_at_teacher
from service.care.doctor.places import (
    look_at_folders,
    look_at_ports,
    look_at_processes,
    look_at_settings,
    look_at_stack,
)
from service.care.doctor.records import (
    look_at_artifacts,
    look_at_clock,
    look_at_database,
    look_at_decisions,
    look_at_ledger,
)
from service.care.doctor.traffic import look_at_traffic
from service.host.logs import quiet
from service.settings import Settings

__all__ = ["Finding", "examine", "ok", "problem", "warning"]

Ask = Callable[..., Any]  # the running learner's API; raises `NotRunning`

PARTS: dict[str, Callable[[Settings, Ask], Iterator[Finding]]] = {
    "settings": look_at_settings,
    "folders": look_at_folders,
    "processes": look_at_processes,
    "ports": look_at_ports,
    "database": look_at_database,
    "decisions": look_at_decisions,
    "ledger": look_at_ledger,
    "artifacts": look_at_artifacts,
    "topic": look_at_broker,
    "teacher": look_at_teacher,
    "clock": look_at_clock,
    "traffic": look_at_traffic,
    "training stack": look_at_stack,
}


def examine(
    settings: Settings, ask: Ask, say: Callable[[str], None] = lambda text: None
) -> Iterator[Finding]:
    """Every finding, part by part. A part that fails is a finding itself."""
    with quiet(logging.CRITICAL):  # what the parts would log is in the findings
        for part, look in PARTS.items():
            say(f"looking at the {part}")
            try:
                yield from look(settings, ask)
            except FlywheelError as error:
                yield problem(part, str(error), "do what the sentence says")
            except Exception as error:  # to be told is what it was called for
                yield warning(
                    part,
                    f"could not be looked at: {type(error).__name__}: {error}",
                    "look at it by hand; tell us, if this was not to be expected",
                )
