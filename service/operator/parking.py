"""Prompts on which the teacher contradicts itself: they train nobody until a person decides."""

from collections.abc import Callable, Mapping
from datetime import datetime

from pipelines.errors import Refused
from pipelines.types import Label
from service.sections import TaskSettings
from storage.database import Database
from storage.labels import add_labels
from storage.votes import Parked, parked

SHOWN = 100


class Parking:
    """Shows them, and takes a person's word for one."""

    def __init__(
        self, database: Database, tasks: Mapping[str, TaskSettings], now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._now = now

    def list(self, task: str) -> list[Parked]:
        """The newest first; at most `SHOWN`."""
        with self._database.snapshot() as tx:
            return parked(tx, task, SHOWN)

    def settle(self, task: str, event_id: str, label: str) -> None:
        """A person's word: a correction, which goes before whatever the teacher said."""
        if label not in self._tasks[task].labels:
            raise Refused(f"{label} is not one of the {len(self._tasks[task].labels)} labels")
        said = Label(
            event_id=event_id,
            label=label,
            source="correction",
            teacher_model="a person",
            prompt_version="",
            terms="",
        )
        with self._database.transaction() as tx:
            if event_id not in {one.event_id for one in parked(tx, task, 2**31 - 1)}:
                raise Refused(f"{event_id} does not wait for anybody's word")
            add_labels(tx, task, [said], self._now())
