"""Records that the tests of decode start from."""

import json
from datetime import UTC, datetime
from typing import Any

from pipelines.decode import decode
from pipelines.records.common import DecodePolicy
from pipelines.records.native import SCHEMA
from pipelines.records.signature import sign
from pipelines.types import (
    Headers,
    PromptEvent,
    SourceOffset,
)

WRITTEN = datetime(2026, 11, 23, 8, 0, 1, tzinfo=UTC)
WRITTEN_MS = int(WRITTEN.timestamp() * 1000)
SOURCE = SourceOffset("prompts", 2, 41)
KEY = b"k" * 32
POLICY = DecodePolicy(
    claims={"support-large": "support"},
    tasks=frozenset({"support", "other"}),
    producer_keys={"gateway-1": KEY, "importer": b"another key"},
    user_salt=b"salt",
)
PLAIN: dict[str, Any] = {
    "schema": SCHEMA,
    "event_id": "e-1",
    "model": "support-large",
    "occurred_at": "2026-11-23T08:00:00Z",
    "messages": [{"role": "user", "content": "Where is my card?"}],
}
TOLD: dict[str, Any] = {
    **PLAIN,
    "answer": "card_arrival",
    "served_by": "student",
    "student": {"version": "support-v3-1f2e3d4c", "label": "card_arrival", "confidence": 0.75},
    "teacher_answer": "card_lost",
    "teacher_model": "large-1",
    "usage": {"prompt_tokens": 12, "completion_tokens": 2},
    "feedback": {"verdict": "bad", "correction": "card_stolen"},
}
PAIR: dict[str, Any] = {
    "request": {
        "model": "support-large",
        "messages": [
            {"role": "system", "content": "Answer with one label."},
            {"role": "user", "content": [{"type": "text", "text": "Where is"},
                                         {"type": "text", "text": "my card?"}]},
        ],
        "user": "u-7",
        "temperature": 0,
        "metadata": {"region": "eu"},
    },
    "response": {
        "id": "chatcmpl-9",
        "object": "chat.completion",
        "created": int(WRITTEN.timestamp()) - 1,
        "model": "large-2026",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "card_arrival"},
             "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 30, "completion_tokens": 3, "total_tokens": 33},
    },
}  # fmt: skip
# One full sample of each shape beside the native one, by the shape's mark: its model is
# `support-large`, its user `u-7`. What every shape promises is tried on them.
OTHER_SAMPLES: dict[str, dict[str, Any]] = {"request": PAIR}


def read(
    record: Any,
    headers: Headers = (),
    policy: DecodePolicy = POLICY,
    ms: int = WRITTEN_MS,
    source: SourceOffset = SOURCE,
) -> PromptEvent:
    value = record if isinstance(record, bytes) else json.dumps(record).encode()
    return decode(value, headers, source, ms, policy)


def signed(
    record: dict[str, Any],
    producer: str = "gateway-1",
    key: bytes = KEY,
    policy: DecodePolicy = POLICY,
) -> PromptEvent:
    value = json.dumps(record).encode()
    return decode(value, sign(value, producer, key), SOURCE, WRITTEN_MS, policy)


def changed(base: dict[str, Any], path: str, to: Any) -> dict[str, Any]:
    """A deep copy with the value at `a.b.0.c` replaced."""
    copy = json.loads(json.dumps(base))
    *way, last = (int(p) if p.isdigit() else p for p in path.split("."))
    inside = copy
    for step in way:
        inside = inside[step]
    inside[last] = to
    return copy  # type: ignore[no-any-return]
