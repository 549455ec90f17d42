"""Records that could not be read, kept so that they can be looked at and replayed. All SQL."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pipelines.types import DeadLetter
from storage.database import Cursor, first_row, from_db_time, to_db_time

INSERT_DEAD_LETTER = """
INSERT INTO dead_letters
SELECT $topic, unnest($partition), unnest($source_offset), unnest($payload), unnest($headers),
    unnest($reason), $now, NULL
ON CONFLICT DO NOTHING
RETURNING partition
"""

SELECT_DEAD_LETTERS = """
SELECT topic, partition, source_offset, payload, headers, reason, received_at, replayed_at
FROM dead_letters
WHERE ($pending_only = false OR replayed_at IS NULL)
ORDER BY received_at DESC, partition, source_offset DESC
LIMIT $limit
"""

SELECT_DEAD_LETTER = """
SELECT topic, partition, source_offset, payload, headers, reason, received_at, replayed_at
FROM dead_letters
WHERE topic = $topic AND partition = $partition AND source_offset = $source_offset
"""

MARK_REPLAYED = """
UPDATE dead_letters SET replayed_at = $now
WHERE topic = $topic AND partition = $partition AND source_offset = $source_offset
"""

# Many records that cannot be read come together; they are one thing that happened.
SELECT_DEAD_LETTER_BURSTS = """
SELECT max(received_at) AS happened, count(*) FROM dead_letters
GROUP BY time_bucket(INTERVAL 5 minutes, received_at)
HAVING $before IS NULL OR max(received_at) < $before
ORDER BY happened DESC LIMIT $limit
"""

COUNT_DEAD_LETTERS = "SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL"

DELETE_OLD_DEAD_LETTERS = "DELETE FROM dead_letters WHERE received_at < ?"


def add_dead_letters(tx: Cursor, letters: Sequence[DeadLetter], now: datetime) -> int:
    """Store dead letters of one topic and return how many were new."""
    if not letters:
        return 0
    rows = tx.execute(
        INSERT_DEAD_LETTER,
        {
            "topic": letters[0].topic,
            "partition": [letter.partition for letter in letters],
            "source_offset": [letter.offset for letter in letters],
            "payload": [letter.payload for letter in letters],
            "headers": [_encode_headers(letter.headers) for letter in letters],
            "reason": [letter.reason for letter in letters],
            "now": to_db_time(now),
        },
    ).fetchall()
    return len(rows)


def dead_letters(tx: Cursor, *, limit: int, pending_only: bool = False) -> list[DeadLetter]:
    """Newest first."""
    rows = tx.execute(SELECT_DEAD_LETTERS, {"limit": limit, "pending_only": pending_only})
    return [_dead_letter(row) for row in rows.fetchall()]


def dead_letter(tx: Cursor, topic: str, partition: int, offset: int) -> DeadLetter | None:
    """The one at this place of the topic."""
    at = {"topic": topic, "partition": partition, "source_offset": offset}
    row = first_row(tx.execute(SELECT_DEAD_LETTER, at))
    return None if row is None else _dead_letter(row)


def mark_replayed(tx: Cursor, letter: DeadLetter, now: datetime) -> None:
    tx.execute(
        MARK_REPLAYED,
        {
            "topic": letter.topic,
            "partition": letter.partition,
            "source_offset": letter.offset,
            "now": to_db_time(now),
        },
    )


def count_dead_letters(tx: Cursor) -> int:
    """Dead letters that were not replayed."""
    row = first_row(tx.execute(COUNT_DEAD_LETTERS))
    return int(row[0]) if row else 0


def delete_dead_letters(tx: Cursor, before: datetime) -> None:
    tx.execute(DELETE_OLD_DEAD_LETTERS, [to_db_time(before)])


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    return DeadLetter(
        topic=row[0],
        partition=row[1],
        offset=row[2],
        payload=row[3],
        headers=_decode_headers(row[4]),
        reason=row[5],
        received_at=from_db_time(row[6]),
        replayed_at=None if row[7] is None else from_db_time(row[7]),
    )


def _encode_headers(headers: tuple[tuple[str, bytes], ...]) -> str:
    return json.dumps([[name, value.hex()] for name, value in headers])


def _decode_headers(text: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, bytes.fromhex(value)) for name, value in json.loads(text))


def dead_letter_bursts(
    tx: Cursor, limit: int, before: datetime | None = None
) -> list[tuple[datetime, int]]:
    """When how many records could not be read, newest first, by five minutes."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    rows = tx.execute(SELECT_DEAD_LETTER_BURSTS, values).fetchall()
    return [(from_db_time(at), int(count)) for at, count in rows]
