"""Shapes of the answers that apps receive without a student, by day. All SQL about them."""

from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime

from storage.database import Cursor

ADD_SHAPES = """
INSERT INTO answer_shapes
SELECT unnest($day), unnest($task), unnest($shape), unnest($answers)
"""
# Whole days, the newest first, until there are so many.
SELECT_NEWEST = """
SELECT shape, sum(answers) FROM answer_shapes JOIN (
    SELECT day, sum(sum(answers)) OVER (ORDER BY day DESC) - sum(answers) AS newer
    FROM answer_shapes WHERE task = $task GROUP BY day
) USING (day)
WHERE task = $task AND newer < $answers GROUP BY shape
"""
DELETE_OLD = "DELETE FROM answer_shapes WHERE day < ?"

LOOKED_AT = 500  # of the newest answers, for what they look like to an app

ShapeKey = tuple[date, str, str]  # day (UTC), task, shape


def add_shapes(tx: Cursor, shapes: Mapping[ShapeKey, int]) -> None:
    if shapes:
        tx.execute(
            ADD_SHAPES,
            {
                "day": [day for day, _, _ in shapes],
                "task": [task for _, task, _ in shapes],
                "shape": [shape for _, _, shape in shapes],
                "answers": list(shapes.values()),
            },
        )


def newest_shapes(tx: Cursor, task: str, answers: int = LOOKED_AT) -> Counter[str]:
    """Of about so many answers, the newest ones."""
    rows = tx.execute(SELECT_NEWEST, {"task": task, "answers": answers}).fetchall()
    return Counter({str(shape): int(count) for shape, count in rows})


def delete_shapes_before(tx: Cursor, moment: datetime) -> None:
    tx.execute(DELETE_OLD, [moment.date()])
