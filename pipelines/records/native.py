"""The native record: all that flywheel can be told of a prompt, published as a JSON Schema."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from pipelines.chat_request import Attachment, Past, known_asked, wants_a_tool
from pipelines.errors import InvalidMessage
from pipelines.reach import Reach
from pipelines.records.common import (
    Attributes,
    DecodePolicy,
    Name,
    TokenCount,
    given_id,
    moment,
    refuse_unknown_role,
    user_key,
)
from pipelines.types import (
    Feedback,
    Message,
    PromptEvent,
    ServedBy,
    SourceOffset,
    StudentAnswer,
    Usage,
)

SCHEMA: Final = "flywheel.prompt/1"


class NativeStudent(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the student said, whoever served in the end."""

    version: Annotated[Name, Meta(description="The student version, as answers name it.")]
    label: Annotated[str, Meta(max_length=1000, description="Its label.")]
    confidence: Annotated[float, Meta(ge=0, le=1, description="Calibrated, in [0, 1].")]
    reach: Annotated[
        Reach | None,
        Meta(description="Where the prompt lies, seen from the training data. Absent: unknown."),
    ] = None
    unsure: Annotated[
        str,
        Meta(max_length=100, description="Why the answer is not promised. Absent: it is."),
    ] = ""


class NativeUsage(Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of the teacher's call."""

    prompt_tokens: TokenCount = 0
    completion_tokens: TokenCount = 0


class NativeFeedback(Struct, frozen=True, kw_only=True, gc=False):
    """What a person said about the answer."""

    verdict: Literal["good", "bad"]
    correction: Annotated[
        str | None,
        Meta(description="The right label. Counts only in a signed record."),
    ] = None


class NativeRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One production prompt and what became of it. Fields that are not named are ignored."""

    schema: Annotated[Literal["flywheel.prompt/1"], Meta(description="This very text.")]
    event_id: Annotated[
        Name | None,
        Meta(
            description="Stable over retries. Counts together with task, producer and content; "
            "absent: the place on the topic."
        ),
    ] = None
    task: Annotated[
        Name | None,
        Meta(description="A task of the settings. Absent: the task that claims the model."),
    ] = None
    model: Annotated[Name, Meta(description="The model that the app asked for.")]
    occurred_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="RFC 3339, with its offset from UTC. Absent: the record's own time."),
    ] = None
    messages: Annotated[
        tuple[Message, ...],
        Meta(min_length=1, max_length=1000, description="The conversation, oldest first."),
    ]
    asked: Annotated[
        dict[str, Any],
        Meta(description="What else decides about the answer, as the app asked: response_format, "
             "tools, tool_choice, reasoning_effort, verbosity, stop, seed, temperature, top_p, "
             "max_tokens."),
    ] = {}  # fmt: skip
    past: Annotated[
        Past | None, Meta(description="Why no student may answer it: counted, never learned from.")
    ] = None
    attachments: Annotated[
        tuple[Attachment, ...] | None, Meta(description="What of the messages is no text.")
    ] = None
    cut: Annotated[int, Meta(ge=0, description="Characters left out of texts too long.")] = 0
    answer: Annotated[str | None, Meta(description="What the app received.")] = None
    served_by: Annotated[
        ServedBy, Meta(description="Who answered. Anything but app counts only when signed.")
    ] = "app"
    student: Annotated[NativeStudent | None, Meta(description="Counts only when signed.")] = None
    teacher_answer: Annotated[
        str | None, Meta(description="The teacher's own answer: a label. Only when signed.")
    ] = None
    teacher_model: Annotated[Name | None, Meta(description="Counts only when signed.")] = None
    usage: Annotated[NativeUsage | None, Meta(description="Counts only when signed.")] = None
    feedback: NativeFeedback | None = None
    user: Annotated[
        Annotated[str, Meta(max_length=500)] | None,
        Meta(description="The end user. Kept as a keyed hash only."),
    ] = None
    attributes: Annotated[Attributes, Meta(description="Anything to cut the traffic by.")] = {}


_ENCODE = msgspec.json.Encoder().encode


def encode_native(record: NativeRecord) -> bytes:
    """The record's value. Fields that are absent are left out."""
    return _ENCODE(record)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a native record, as published in docs/prompt-event.schema.json."""
    (schema,), components = msgspec.json.schema_components(
        [NativeRecord], ref_template="#/$defs/{name}"
    )
    root: dict[str, Any] = components.pop("NativeRecord")
    assert schema == {"$ref": "#/$defs/NativeRecord"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A production prompt, as flywheel reads it from its topic",
        **{key: value for key, value in root.items() if key != "title"},
        "$defs": components,
    }


def from_native(
    record: NativeRecord,
    source: SourceOffset,
    timestamp_ms: int,
    signed: bool,
    policy: DecodePolicy,
) -> PromptEvent:
    """What a producer may say of a prompt; some of it counts only from one that signs."""
    for message in record.messages:
        refuse_unknown_role(message.role)
    if signed and record.served_by == "student" and record.student is None:
        raise InvalidMessage("served_by is student, but there is no student's answer")
    task = record.task
    if task is None or task not in policy.tasks:
        task = policy.claims.get(record.model)
    return PromptEvent(
        event_id=given_id(record.event_id),
        task=task,
        model=record.model,
        occurred_at=moment(record.occurred_at, timestamp_ms),
        messages=record.messages,
        answer=record.answer,
        feedback=_feedback(record.feedback, signed) if record.feedback else None,
        user_key=user_key(record.user, policy.user_salt) if record.user else None,
        attributes=record.attributes,
        asked=known_asked(record.asked),
        past=record.past or _past(record),
        source=source,
        served_by=record.served_by if signed else "app",
        student=_student(record.student) if signed and record.student else None,
        teacher_answer=record.teacher_answer if signed else None,
        teacher_model=record.teacher_model if signed else None,
        usage=native_usage(record.usage) if signed and record.usage else None,
    )


def _past(record: NativeRecord) -> Past | Literal[""]:
    """Where the producer does not say: what the record itself shows."""
    if wants_a_tool(record.asked.get("tools"), record.asked.get("tool_choice")):
        return "tools"
    return "content" if record.attachments else "long" if record.cut else ""


def _feedback(feedback: NativeFeedback, signed: bool) -> Feedback:
    return Feedback(verdict=feedback.verdict, correction=feedback.correction if signed else None)


def _student(student: NativeStudent) -> StudentAnswer:
    return StudentAnswer(
        version=student.version,
        label=student.label,
        confidence=student.confidence,
        reach=student.reach,
        unsure=student.unsure,
    )


def native_usage(usage: NativeUsage) -> Usage:
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


if __name__ == "__main__":
    print(msgspec.json.format(_ENCODE(json_schema()), indent=2).decode())
