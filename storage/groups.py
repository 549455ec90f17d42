"""Near-duplicate groups, each with the text of its first member. All SQL about them."""

from collections.abc import Sequence
from datetime import datetime

from pipelines.curate import Group
from pipelines.types import Side
from storage.database import Cursor, to_db_time

INSERT_GROUPS = """
INSERT INTO groups
SELECT unnest($group_id), unnest($task), unnest($side), unnest($text), $now
ON CONFLICT DO NOTHING
"""

SELECT_GROUPS = """
SELECT group_id, side, text FROM groups WHERE task = ? ORDER BY created_at, group_id
"""


def add_groups(tx: Cursor, groups: Sequence[Group], now: datetime) -> None:
    if not groups:
        return
    tx.execute(
        INSERT_GROUPS,
        {
            "group_id": [group.group_id for group in groups],
            "task": [group.task for group in groups],
            "side": [group.side.value for group in groups],
            "text": [group.text for group in groups],
            "now": to_db_time(now),
        },
    )


def stored_groups(tx: Cursor, task: str) -> list[Group]:
    """All groups of a task, oldest first."""
    rows = tx.execute(SELECT_GROUPS, [task]).fetchall()
    return [Group(row[0], task, Side(row[1]), row[2]) for row in rows]
