"""Imported events that were read: a log that is imported twice counts once. All SQL about them."""

from collections.abc import Sequence
from datetime import datetime

from pipelines.identities import IMPORTED
from pipelines.types import PromptEvent
from storage.database import Cursor, to_db_time

SELECT_KNOWN = "SELECT event_id FROM imported WHERE event_id IN (SELECT unnest($event_ids))"
ADD_IMPORTED = "INSERT INTO imported SELECT unnest($event_ids), $now"
DELETE_OLD = "DELETE FROM imported WHERE read_at < ?"


def is_imported(event: PromptEvent) -> bool:
    return event.event_id.startswith(IMPORTED)


def unread(tx: Cursor, events: Sequence[PromptEvent]) -> list[PromptEvent]:
    """The events without imported ones that were read before, or stand here twice."""
    ids = [event.event_id for event in events if is_imported(event)]
    if not ids:
        return list(events)
    seen = {row[0] for row in tx.execute(SELECT_KNOWN, {"event_ids": ids}).fetchall()}
    kept = []
    for event in events:
        if is_imported(event):
            if event.event_id in seen:
                continue
            seen.add(event.event_id)
        kept.append(event)
    return kept


def add_imported(tx: Cursor, events: Sequence[PromptEvent], now: datetime) -> None:
    if ids := [event.event_id for event in events if is_imported(event)]:
        tx.execute(ADD_IMPORTED, {"event_ids": ids, "now": to_db_time(now)})


def forget_imported_before(tx: Cursor, moment: datetime) -> None:
    tx.execute(DELETE_OLD, [to_db_time(moment)])
