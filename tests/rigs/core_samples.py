"""Events, tasks and samples that the tests of the core start from."""

from datetime import UTC, datetime
from typing import Any

from pipelines.curate import LabelledSample
from pipelines.types import (
    Example,
    Message,
    PromptEvent,
    SampleReason,
    Side,
    SourceOffset,
    StudentAnswer,
    Task,
)

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TASK = Task(name="support", models=("gpt-support",), labels=("refund", "delivery", "cancel"))


def make_event(event_id: str = "e-1", text: str = "where is it", **about: Any) -> PromptEvent:
    fields: dict[str, Any] = {
        "event_id": event_id,
        "task": "support",
        "model": "gpt-support",
        "occurred_at": NOON,
        "messages": (Message("user", text),),
        "source": SourceOffset("prompts", 0, 0),
    }
    return PromptEvent(**{**fields, **about})


def answered(confidence: float, label: str = "refund") -> StudentAnswer:
    return StudentAnswer(version="support-v1-aaaaaaaa", label=label, confidence=confidence)


def labelled(
    number: int,
    text: str,
    label: str = "refund",
    *,
    side: Side = Side.TRAINING,
    group: str | None = None,
    pi: float | None = None,
    user: str | None = None,
) -> LabelledSample:
    """A labelled sample; the held-out side is drawn at 0.5 unless told."""
    example = Example(
        event_id=f"e-{number}",
        text=text,
        label=label,
        group_id=group or f"g-{number}",
        side=side,
        user_key=user,
        reason=SampleReason.GIVEN,
        messages=(Message("user", text),),
    )
    return LabelledSample(example, label, pi)
