"""Doubts: training labels that the other examples speak against. All SQL about them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from storage.database import Cursor, to_db_time

DELETE_OF_TASK = "DELETE FROM doubts WHERE task = $task"
INSERT_DOUBTS = """
INSERT INTO doubts
SELECT unnest($event_id), $task, unnest($label), unnest($likelier), unnest($margin), $now
"""


def replace_doubts(
    tx: Cursor, task: str, doubts: Sequence[Mapping[str, Any]], now: datetime
) -> None:
    """Keep what the last training of a task found (`pipelines.students.doubts`), and only that."""
    tx.execute(DELETE_OF_TASK, {"task": task})
    if not doubts:
        return
    columns = {
        name: [doubt[name] for doubt in doubts]
        for name in ("event_id", "label", "likelier", "margin")
    }
    tx.execute(INSERT_DOUBTS, {**columns, "task": task, "now": to_db_time(now)})
