"""The board on which the parts of a learner write what they last saw, and that the views read.

It tells, it does not act: nobody waits here, and nobody is called back.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from service.operator.status import Figures, GatewaySeen, IngestState, Labelling, Progress, Unusable
from storage.live import LiveTask

FORGOTTEN = timedelta(minutes=10)  # a gateway that was silent for so long


class Board:
    """Safe to use from several threads. A value is replaced as a whole, never changed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._figures: dict[str, Figures] = {}
        self._wanted: set[str] = set()
        self._gateways: dict[str, GatewaySeen] = {}
        self.ingest = IngestState()  # by ingest, at each poll
        self.progress: Progress | None = None  # by the present child; None while there is none
        self.next_ticks: Mapping[str, datetime | None] = {}  # by the schedule; it names all jobs
        self.live: Mapping[str, LiveTask] = {}  # by whoever publishes: what is served, by task
        self.teacher_refuses: bool | None = None  # our key; None before the first call
        self.teacher_said = ""  # when it refused last: its status, code, parameter and message
        self.unusable: Mapping[str, Unusable] = {}  # answers that were no label, by task

    def say_of_ingest(self, **about: Any) -> None:
        """What has changed of what ingest does: its two threads tell each their part."""
        with self._lock:
            self.ingest = replace(self.ingest, **about)

    def figures(self, task: str) -> Figures:
        """The latest figures of a task; empty ones before the first look."""
        with self._lock:
            return self._figures.get(task, Figures())

    def show(self, task: str, figures: Figures) -> None:
        with self._lock:
            self._figures[task] = figures

    def live_task(self, task: str) -> LiveTask:
        return self.live.get(task, LiveTask())

    def has_student(self, task: str) -> bool:
        return self.live_task(task).champion is not None

    def want_training(self, task: str) -> None:
        """An operator's wish, heeded by the next look."""
        with self._lock:
            self._wanted.add(task)

    def take_wish(self, task: str) -> bool:
        """Whether training was wished for since the last time."""
        with self._lock:
            wished = task in self._wanted
            self._wanted.discard(task)
        return wished

    def hear(self, seen: GatewaySeen) -> GatewaySeen | None:
        """What a gateway reports; returns what it had reported before."""
        with self._lock:
            before = self._gateways.get(seen.name)
            self._gateways[seen.name] = seen
        return before

    def gateways(self, now: datetime) -> tuple[GatewaySeen, ...]:
        """Those that reported lately, by name; the silent ones with when they did."""
        with self._lock:
            oldest = now - FORGOTTEN
            self._gateways = {n: one for n, one in self._gateways.items() if one.heard_at >= oldest}
            return tuple(self._gateways[name] for name in sorted(self._gateways))

    def note_call(self, outcome: str, said: str = "") -> None:
        """A teacher call has ended. A busy, slow or broken teacher says nothing about our key."""
        if outcome in ("received", "refused"):
            self.teacher_refuses = outcome == "refused"
        if outcome in ("impossible", "refused"):
            self.teacher_said = said

    def labelling(self) -> Labelling:
        return Labelling(self.teacher_refuses, self.teacher_said, self.unusable)

    def note_unusable(self, task: str, found: Unusable | None) -> None:
        """None: the last answer was a label."""
        with self._lock:
            others = {name: one for name, one in self.unusable.items() if name != task}
            self.unusable = {**others, task: found} if found else others
