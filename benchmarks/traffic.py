"""Invented production traffic for benchmarks: records of about 1 kB as a gateway writes them."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from benchmarks.results import ROOT
from pipelines.records.native import SCHEMA, NativeRecord, NativeStudent, encode_native
from pipelines.records.signature import sign
from pipelines.types import Headers, Message, Task
from service.keys import GATEWAY_PRODUCER

RECORD_BYTES = 1_000
INSTRUCTIONS = (
    "You sort messages of customers for a support desk. Answer with one of these labels and "
    "nothing else: refund, delivery, account, invoice, cancel, complaint, praise, other."
)
LABELS = ("refund", "delivery", "account", "invoice", "cancel", "complaint", "praise", "other")
TASK = Task(name="support", models=("support-classifier",), labels=LABELS)


def vocabulary() -> list[str]:
    """The words of the demonstration's customers."""
    lines = (ROOT / "service" / "demo" / "messages.jsonl").read_text().splitlines()
    return sorted({word for line in lines for word in json.loads(line)["text"].split()})


def gateway_records(
    count: int, *, seed: int, key: bytes, until: datetime, events_per_second: float = 1_000.0
) -> Iterator[tuple[bytes, Headers]]:
    """(value, headers) of so many events, the last of them at `until`; each of about 1 kB."""
    draw = random.Random(seed)
    words = vocabulary()
    for at in range(count):
        value = encode_native(
            _record(
                draw,
                words,
                event_id=f"{draw.getrandbits(128):032x}",
                occurred_at=until - timedelta(seconds=(count - at) / events_per_second),
            )
        )
        yield value, sign(value, GATEWAY_PRODUCER, key)


def message(draw: random.Random, words: list[str], characters: int) -> str:
    """A text like no other."""
    chosen: list[str] = []
    length = 0
    while length < characters:
        chosen.append(draw.choice(words))
        length += len(chosen[-1]) + 1
    return " ".join(chosen)[:characters]


def _record(
    draw: random.Random, words: list[str], *, event_id: str, occurred_at: datetime
) -> NativeRecord:
    label = draw.choice(LABELS)
    confidence = round(1 - 0.5 * draw.random() ** 3, 6)
    empty = NativeRecord(
        schema=SCHEMA,
        event_id=event_id,
        task=TASK.name,
        model=TASK.models[0],
        occurred_at=occurred_at.astimezone(UTC),
        messages=(Message("system", INSTRUCTIONS), Message("user", "")),
        answer=label,
        served_by="student",
        student=NativeStudent(version="support-v3-1f2e3d4c", label=label, confidence=confidence),
        user=f"user-{draw.randrange(5_000)}",
        attributes={"channel": draw.choice(("web", "mail", "app"))},
    )
    left = RECORD_BYTES - len(encode_native(empty))
    text = message(draw, words, left)
    return replace(empty, messages=(empty.messages[0], Message("user", text)))
