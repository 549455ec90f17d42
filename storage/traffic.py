"""Sums over all traffic, and the offsets they rest on. All SQL about them is in this file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from pipelines.tally import Tally, TrafficKey
from storage.database import Cursor, first_row, from_db_time, from_db_time_or_none, to_db_time

ADD_TRAFFIC = """
INSERT INTO traffic
SELECT
    unnest($minute), unnest($task), unnest($version), unnest($segment),
    unnest($events), unnest($assessed), unnest($served), unnest($teacher_served),
    unnest($sum_f), unnest($sum_f2), unnest($served_sum_f), unnest($served_sum_f2),
    unnest($histogram),
    unnest($forced), unnest($forced_sum_f), unnest($novel),
    unnest($far_histogram)
ON CONFLICT DO UPDATE SET
    events = events + excluded.events,
    assessed = assessed + excluded.assessed,
    served = served + excluded.served,
    teacher_served = teacher_served + excluded.teacher_served,
    sum_f = sum_f + excluded.sum_f,
    sum_f2 = sum_f2 + excluded.sum_f2,
    served_sum_f = served_sum_f + excluded.served_sum_f,
    served_sum_f2 = served_sum_f2 + excluded.served_sum_f2,
    histogram = [histogram[i] + excluded.histogram[i] for i in range(1, len(histogram) + 1)],
    forced = forced + excluded.forced,
    forced_sum_f = forced_sum_f + excluded.forced_sum_f,
    novel = novel + excluded.novel,
    far_histogram = [
        coalesce(far_histogram[i], 0) + excluded.far_histogram[i]
        for i in range(1, len(histogram) + 1)
    ]
"""

SELECT_SUMS = """
SELECT
    coalesce(sum(events), 0), coalesce(sum(assessed), 0), coalesce(sum(served), 0),
    coalesce(sum(teacher_served), 0),
    coalesce(sum(sum_f), 0), coalesce(sum(sum_f2), 0),
    coalesce(sum(served_sum_f), 0), coalesce(sum(served_sum_f2), 0),
    coalesce(sum(forced), 0), coalesce(sum(forced_sum_f), 0), coalesce(sum(novel), 0)
FROM traffic
WHERE task = $task AND ($version IS NULL OR version = $version)
    AND minute >= $since AND minute < $until
"""

SELECT_FIRST_MINUTE = """
SELECT min(minute) FROM traffic WHERE task = $task AND minute >= $since
"""

SELECT_HISTOGRAM = """
SELECT bin, sum(events)
FROM (
    SELECT unnest(histogram) AS events, generate_subscripts(histogram, 1) - 1 AS bin
    FROM traffic
    WHERE task = $task AND version = $version AND minute >= $since AND minute < $until
)
GROUP BY bin ORDER BY bin
"""

SELECT_SERIES = """
SELECT
    time_bucket(to_seconds($bucket_seconds), minute) AS bucket,
    sum(events), sum(assessed), sum(served), sum(teacher_served)
FROM traffic
WHERE task = $task AND minute >= $since
GROUP BY bucket ORDER BY bucket
"""

SELECT_HISTOGRAM_SERIES = """
SELECT bucket, version, bin, sum(events)
FROM (
    SELECT
        time_bucket(to_seconds($bucket_seconds), minute) AS bucket, version,
        unnest(histogram) AS events, generate_subscripts(histogram, 1) - 1 AS bin
    FROM traffic
    WHERE task = $task AND minute >= $since AND version <> ''
)
WHERE events > 0
GROUP BY bucket, version, bin ORDER BY bucket, version, bin
"""

# Of the newest minutes, as many as it takes for so many assessed events.
SELECT_NEWEST_MIX = """
WITH minutes AS (
    SELECT minute, sum(sum(assessed)) OVER (ORDER BY minute DESC) - sum(assessed) AS newer
    FROM traffic
    WHERE task = $task AND version = $version AND minute >= $since
    GROUP BY minute
), newest AS (
    SELECT * FROM traffic
    WHERE task = $task AND version = $version
        AND minute >= (SELECT min(minute) FROM minutes WHERE newer < $events)
)
SELECT bin, sum(events), sum(far), any_value((SELECT sum(novel) FROM newest))
FROM (
    SELECT
        unnest(histogram) AS events,
        unnest(coalesce(far_histogram, list_transform(histogram, lambda x: 0))) AS far,
        generate_subscripts(histogram, 1) - 1 AS bin
    FROM newest
)
GROUP BY bin ORDER BY bin
"""

SUMMED = (
    "events", "assessed", "served", "teacher_served", "sum_f", "sum_f2", "served_sum_f",
    "served_sum_f2", "forced", "forced_sum_f", "novel",
)  # fmt: skip

DELETE_OLD = "DELETE FROM traffic WHERE minute < ?"

SELECT_OFFSETS = "SELECT partition, next_offset, identity FROM offsets WHERE topic = ?"

SELECT_ALL_OFFSETS = "SELECT topic, partition, next_offset FROM offsets ORDER BY topic, partition"

UPSERT_OFFSETS = """
INSERT INTO offsets
SELECT $topic, unnest($partition), unnest($next_offset), $identity, $now
ON CONFLICT DO UPDATE SET
    next_offset = excluded.next_offset, identity = excluded.identity,
    updated_at = excluded.updated_at
"""

SELECT_STORED_AT = "SELECT max(updated_at) FROM offsets"

SELECT_GAPS = """
SELECT topic, partition, last - first + 1, noticed_at FROM gaps
WHERE $before IS NULL OR noticed_at < $before
ORDER BY noticed_at DESC, topic, partition LIMIT $limit
"""

DELETE_OFFSETS = "DELETE FROM offsets WHERE topic = ?"

INSERT_GAP = "INSERT INTO gaps VALUES ($topic, $partition, $first, $last, $now)"


class StoredGap(NamedTuple):
    """Records that retention removed before they were read."""

    topic: str
    partition: int
    records: int
    noticed_at: datetime


class NewestMix(NamedTuple):
    """Events by confidence bin, and how many of them were beyond the student's reach."""

    near: list[int]
    far: list[int]
    novel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSums:
    """Traffic of one task (and version) over a window. f = predicted agreement."""

    events: int
    assessed: int
    served: int
    teacher_served: int
    sum_f: float
    sum_f2: float
    served_sum_f: float
    served_sum_f2: float
    forced: int  # of those served
    forced_sum_f: float
    novel: int  # of those assessed


def add_traffic(tx: Cursor, sums: Mapping[TrafficKey, Tally]) -> None:
    """Add one batch's sums to what is stored."""
    if not sums:
        return
    keys = list(sums)
    values = list(sums.values())
    parameters: dict[str, list[object]] = {
        "minute": [to_db_time(key[0]) for key in keys],
        "task": [key[1] for key in keys],
        "version": [key[2] for key in keys],
        "segment": [key[3] for key in keys],
        "histogram": [value.histogram for value in values],
        "far_histogram": [value.far_histogram for value in values],
    }
    for name in SUMMED:
        parameters[name] = [getattr(value, name) for value in values]
    tx.execute(ADD_TRAFFIC, parameters)


def window_sums(
    tx: Cursor, task: str, version: str | None, since: datetime, until: datetime
) -> WindowSums:
    """Sums over [since, until), to the minute; `version` None takes all versions."""
    window = {"since": to_db_time(since), "until": to_db_time(until)}
    row = first_row(tx.execute(SELECT_SUMS, {"task": task, "version": version, **window}))
    assert row is not None
    return WindowSums(
        events=int(row[0]),
        assessed=int(row[1]),
        served=int(row[2]),
        teacher_served=int(row[3]),
        sum_f=row[4],
        sum_f2=row[5],
        served_sum_f=row[6],
        served_sum_f2=row[7],
        forced=int(row[8]),
        forced_sum_f=row[9],
        novel=int(row[10]),
    )


def first_minute(tx: Cursor, task: str, since: datetime) -> datetime | None:
    """When the first events of a task since a moment came."""
    row = first_row(tx.execute(SELECT_FIRST_MINUTE, {"task": task, "since": to_db_time(since)}))
    return from_db_time_or_none(row[0]) if row else None


def confidence_histogram(
    tx: Cursor, task: str, version: str, since: datetime, until: datetime
) -> list[int]:
    """Events per confidence bin over [since, until); empty when there were none."""
    rows = tx.execute(
        SELECT_HISTOGRAM,
        {
            "task": task,
            "version": version,
            "since": to_db_time(since),
            "until": to_db_time(until),
        },
    ).fetchall()
    return [int(count) for _, count in rows]


def newest_mix(tx: Cursor, task: str, version: str, since: datetime, events: int) -> "NewestMix":
    """By confidence bin: events near the training data and far, of the newest minutes.

    As many minutes as it takes for `events` assessed events, back to `since`; empty where there
    were none. What lies beyond the student's reach is near, in the lowest bin, where nothing is
    trusted.
    """
    values = {"task": task, "version": version, "since": to_db_time(since), "events": events}
    rows = tx.execute(SELECT_NEWEST_MIX, values).fetchall()
    far = [int(row[2]) for row in rows]
    near = [int(row[1]) - apart for row, apart in zip(rows, far, strict=True)]
    return NewestMix(near, far, int(rows[0][3]) if rows else 0)


def traffic_series(
    tx: Cursor, task: str, since: datetime, bucket_seconds: int
) -> list[tuple[datetime, int, int, int, int]]:
    """(bucket, events, assessed, served, teacher_served), oldest first; naive UTC."""
    return [
        (row[0], int(row[1]), int(row[2]), int(row[3]), int(row[4]))
        for row in tx.execute(
            SELECT_SERIES,
            {"task": task, "since": to_db_time(since), "bucket_seconds": bucket_seconds},
        ).fetchall()
    ]


def histogram_series(
    tx: Cursor, task: str, since: datetime, bucket_seconds: int
) -> list[tuple[datetime, str, int, int]]:
    """(bucket, version, bin, events) of the assessed traffic, oldest first; naive UTC."""
    return [
        (row[0], row[1], int(row[2]), int(row[3]))
        for row in tx.execute(
            SELECT_HISTOGRAM_SERIES,
            {"task": task, "since": to_db_time(since), "bucket_seconds": bucket_seconds},
        ).fetchall()
    ]


def delete_traffic_before(tx: Cursor, moment: datetime) -> None:
    tx.execute(DELETE_OLD, [to_db_time(moment)])


def stored_offsets(tx: Cursor, topic: str) -> tuple[dict[int, int], str | None]:
    """Where to go on, by partition, and the identity of the topic that was read."""
    rows = tx.execute(SELECT_OFFSETS, [topic]).fetchall()
    return {int(row[0]): int(row[1]) for row in rows}, rows[0][2] if rows else None


def all_offsets(tx: Cursor) -> dict[str, dict[str, int]]:
    """Where each topic was read to, by its name and partition; partitions as JSON has them."""
    found: dict[str, dict[str, int]] = {}
    for topic, partition, offset in tx.execute(SELECT_ALL_OFFSETS).fetchall():
        found.setdefault(topic, {})[str(partition)] = int(offset)
    return found


def store_offsets(
    tx: Cursor, topic: str, identity: str, next_offsets: Mapping[int, int], now: datetime
) -> None:
    """Move the offsets; belongs into the transaction that stores what the records meant."""
    if not next_offsets:
        return
    tx.execute(
        UPSERT_OFFSETS,
        {
            "topic": topic,
            "partition": list(next_offsets),
            "next_offset": list(next_offsets.values()),
            "identity": identity,
            "now": to_db_time(now),
        },
    )


def forget_offsets(tx: Cursor, topic: str) -> None:
    """Read the topic from its beginning next time. Only ever by an operator's word."""
    tx.execute(DELETE_OFFSETS, [topic])


def add_gaps(tx: Cursor, topic: str, gaps: Sequence[tuple[int, int, int]], now: datetime) -> None:
    """Remember (partition, first, last) ranges that retention removed before we read them."""
    for partition, first, last in gaps:
        tx.execute(
            INSERT_GAP,
            {
                "topic": topic,
                "partition": partition,
                "first": first,
                "last": last,
                "now": to_db_time(now),
            },
        )


def recent_gaps(tx: Cursor, limit: int, before: datetime | None = None) -> list[StoredGap]:
    """Newest first."""
    values = {"limit": limit, "before": None if before is None else to_db_time(before)}
    return [
        StoredGap(topic, partition, int(records), from_db_time(at))
        for topic, partition, records, at in tx.execute(SELECT_GAPS, values).fetchall()
    ]


def stored_at(tx: Cursor) -> datetime | None:
    """When a batch of records was stored last."""
    row = first_row(tx.execute(SELECT_STORED_AT))
    return from_db_time_or_none(row[0]) if row else None
