"""What the witnesses say after a chaos run, beside what the program's files hold."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import duckdb

from benchmarks.chaos.kills import Kill
from benchmarks.chaos.witnesses import (
    ELSEWHERE,
    PRODUCER,
    TASK,
    Acknowledged,
    Sums,
    SyncedLog,
    answers_of,
)
from service.settings import Settings
from service.topics.opening import open_reader

CAPTURE_MS = 100.0
SELECT_SUMS = """
SELECT minute, segment, sum(events), sum(sum_f) FROM traffic
WHERE task = ? AND version = ? GROUP BY ALL
"""
SELECT_OTHERS = "SELECT coalesce(sum(events), 0) FROM traffic WHERE version <> ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """Where the witnesses have written."""

    sent: SyncedLog
    asked: SyncedLog
    approved: SyncedLog
    kills: SyncedLog
    billing: Path


class OnTopic(NamedTuple):
    """What the topic itself holds, read anew from its beginning."""

    produced: Counter[int]
    captured: Counter[str]


def read_topic(settings: Settings) -> OnTopic:
    """Every record's own id. No part of the ingest has a say in it."""
    reader = open_reader(settings)
    produced: Counter[int] = Counter()
    captured: Counter[str] = Counter()
    reader.seek({})
    idle = 0
    while idle < 3:
        records = reader.poll(max_records=5_000, timeout_seconds=1.0).records
        idle = 0 if records else idle + 1
        for record in records:
            event_id = str(json.loads(record.value or b"{}")["event_id"])
            if event_id.startswith(f"{PRODUCER}-"):
                produced[int(event_id.removeprefix(f"{PRODUCER}-"))] += 1
            else:
                captured[event_id] += 1
    reader.close()
    return OnTopic(produced, captured)


class Stored(NamedTuple):
    """What the database has counted."""

    produced: Sums
    confidence: float
    others: int


def read_database(data: Path) -> Stored:
    with duckdb.connect(str(data / "flywheel.duckdb"), read_only=True) as connection:
        rows = connection.execute(SELECT_SUMS, [TASK, ELSEWHERE]).fetchall()
        others = connection.execute(SELECT_OTHERS, [ELSEWHERE]).fetchall()[0][0]
    events: Sums = Counter()
    confidence = 0.0
    for minute, segment, count, total in rows:
        events[minute, segment] = int(count)
        confidence += total
    return Stored(events, confidence, int(others))


def check_events(logs: Logs, topic: OnTopic, stored: Stored) -> dict[str, float]:
    """Acknowledged against stored: by minute and label, and the sum of all confidences."""
    acknowledged = Acknowledged.read(logs.sent)
    wanted: Sums = Counter()
    for (minute, label), count in acknowledged.events.items():
        wanted[minute.replace(tzinfo=None), label] += count
    captured = sum(topic.captured.values())
    lost = sum((wanted - stored.produced).values()) + max(0, captured - stored.others)
    doubled = sum((stored.produced - wanted).values()) + max(0, stored.others - captured)
    not_on_topic = acknowledged.numbers - len(topic.produced)
    again = sum(topic.produced.values()) - len(topic.produced)
    again += captured - len(topic.captured)
    return {
        "events": acknowledged.numbers + captured,
        "lost": lost + max(0, not_on_topic),
        "duplicated": doubled,
        "on_topic_twice": again,
        "confidence_error": abs(stored.confidence - acknowledged.confidence),
    }


def check_money(logs: Logs, data: Path, kills: Sequence[Kill], concurrency: int) -> dict[str, Any]:
    """Each text is asked for once in a run, and at most once more on purpose: any other bill for
    one is a double purchase."""
    bills = Counter(
        json.loads(line)["messages_sha256"] for line in logs.billing.read_text().splitlines()
    )
    steps: dict[str, str] = {}
    again: set[str] = set()
    for line in (data / "ledger" / "ledger.jsonl").read_bytes().splitlines():
        checksum, _, body = line.partition(b" ")
        assert checksum == b"%08x" % crc32(body), "the ledger does not match its checksums"
        step = json.loads(body)
        steps[step["key"]] = step["step"]
        again |= {step["key"]} if step.get("repeat") else set()
    last = Counter(steps.values())
    deaths = sum(kill.victim in ("learner", "supervisor") for kill in kills)
    return {
        "answers_bought_twice": max(
            sum(count - 1 for count in bills.values())
            - sum(steps[key] in ("received", "unknown") for key in again),
            sum(max(0, count - 2) for count in bills.values()),
        ),
        "answers_bought": last["received"],
        "unknown_outcomes": last["unknown"],
        "unknown_outcomes_at_most": deaths * concurrency,
    }


def check_gateway(
    logs: Logs, topic: OnTopic, kills: Sequence[Kill], stored: Stored
) -> dict[str, Any]:
    """What customers were told, by whom, and what of it a killed gateway took with it."""
    approved = {line["approve"]: line for line in logs.approved.lines() if "approve" in line}
    answered = list(answers_of(logs.asked))
    versions = {str(line["version"]) for line in answered}
    ends = sorted(kill.at for kill in kills if kill.victim in ("gateway", "supervisor"))
    lost = [line for line in answered if line["event"] not in topic.captured]
    ages = []
    for line in lost:
        end = next((end for end in ends if end >= line["at"] - 0.02), None)
        ages.append(1000 * max(0.0, end - line["at"]) if end is not None else float("inf"))
    return {
        "requests_answered": len(answered),
        "versions_served": sorted(versions),
        "unapproved_versions_served": len(versions - set(approved) - {"teacher"}),
        "captures_lost": len(lost),
        "capture_lost_ms_max": round(max(ages, default=0.0), 1),
        "captures_lost_older_than_100_ms": sum(age > CAPTURE_MS for age in ages),
    }


def spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Median and largest of what was measured."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return 0.0, 0.0
    return round(found[len(found) // 2], 2), round(found[-1], 2)
