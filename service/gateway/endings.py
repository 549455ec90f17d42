"""How chat requests end. A branch returns an `Ending`; one place makes of it all that follows.

What follows: metrics, the record on the topic, what feedback can name, headers and bytes.
"""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from starlette.responses import Response

from pipelines.records.native import NativeRecord, NativeStudent, NativeUsage
from pipelines.replies import Completion
from pipelines.types import Message
from service.gateway.capture import Capture
from service.gateway.recent import Recent
from service.gateway.relay import Relay
from service.gateway.turn import Rejected, Turn, json_response, rejection
from service.gateway.upstream import Reply
from service.gateway.wire import EVENT_STREAM
from service.metrics.gateway import GatewayMetrics

By = Literal["student", "teacher", "nobody"]
Outcome = Literal["answered", "unsure", "escalated", "passed_through", "refused", "failed"]
TEACHER: Final = "teacher"
NOBODY: Final = "nobody"


class Verbatim(NamedTuple):
    """What the teacher sent, for the app as it is."""

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = {}
    media_type: str | None = "application/json"


class Streaming(NamedTuple):
    """What the teacher is still sending; `stack` holds it open."""

    reply: Reply
    stack: AsyncExitStack


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What became of a request."""

    by: By  # whose words the app gets
    outcome: Outcome
    version: str = TEACHER  # the student's, unless it is the teacher who answers or has failed
    said: Completion | None = None
    student: NativeStudent | None = None  # what the student said, whoever is heard
    unsure: str = ""  # why that could not be promised
    escalation: str = ""  # what came of asking the teacher then
    kept: bool = True  # as a prompt event, if the request is one that becomes one
    # What is sent. None: what was said, in the form that the app asked for.
    body: Rejected | Verbatim | Streaming | None = None


def passed_through(
    ok: bool, said: Completion | None, body: Verbatim | Streaming | None = None
) -> Ending:
    """The teacher's own reply. Its refusals are its words too, but nobody's answer."""
    outcome: Outcome = "passed_through" if ok else "failed"
    return Ending(by=TEACHER, outcome=outcome, kept=ok, said=said, body=body)


def failed(problem: Rejected) -> Ending:
    """There is no teacher's reply. The app asks again, so this is no prompt event."""
    return Ending(by=NOBODY, outcome="failed", kept=False, body=problem)


class Endings:
    """Closes requests."""

    def __init__(
        self, *, metrics: GatewayMetrics, capture: Capture, recent: Recent, teacher_model: str
    ) -> None:
        self._metrics = metrics
        self._capture = capture
        self._recent = recent
        self._teacher_model = teacher_model

    def close(self, turn: Turn, ending: Ending) -> Response:
        """Count and keep, and the response. A stream is counted and kept when it has ended."""
        headers = _headers(turn, ending)
        if isinstance(ending.body, Streaming):
            reply, stack = ending.body
            return Relay(
                reply,
                stack,
                {**reply.headers(), **headers},
                lambda ok, said: self._note(turn, passed_through(ok, said)),
                turn.dialect,
            )
        self._note(turn, ending)
        match ending.body:
            case None:
                return _written(turn, ending, headers)
            case Verbatim(content, status, theirs, media_type):
                return Response(content, status, {**theirs, **headers}, media_type)
            case Rejected() as problem:
                if ending.outcome == "refused":
                    # Not to be tried again at once: the answer will not be another one.
                    headers["x-should-retry"] = "false"
                return rejection(problem, headers)

    def _note(self, turn: Turn, ending: Ending) -> None:
        by = NOBODY if ending.outcome == "failed" else ending.by
        self._metrics.requests.labels(turn.task_name, by, ending.outcome).inc()
        self._metrics.request_seconds.labels(by).observe(time.perf_counter() - turn.started)
        if turn.task is not None and ending.kept:
            record = self._record(turn, ending)
            self._capture.put(record)
            # The app may know the answer by the id that the teacher gave it.
            alias = ending.said.id if ending.said else None
            self._recent.add(record, size=len(turn.body), alias=alias)

    def _record(self, turn: Turn, ending: Ending) -> NativeRecord:
        by_teacher = ending.said if ending.by == TEACHER else None
        attributes = turn.attributes
        if ending.unsure:
            own = {"unsure": ending.unsure, "escalation": ending.escalation}
            attributes = {**attributes, **own}
        return NativeRecord(
            schema="flywheel.prompt/1",
            event_id=turn.event_id,
            task=turn.task_name,
            model=turn.model,
            occurred_at=turn.occurred_at,
            messages=tuple(turn.messages) or (Message("user", ""),),
            asked=turn.request.asked() if turn.request and not turn.past else {},
            past=turn.past,
            attachments=turn.attachments or None,
            answer=ending.said.content if ending.said else None,
            served_by="app" if ending.by == NOBODY else ending.by,
            student=ending.student,
            teacher_answer=by_teacher.whole if by_teacher else None,
            teacher_model=(by_teacher.model or self._teacher_model or None) if by_teacher else None,
            usage=_usage(by_teacher),
            user=turn.user,
            attributes=attributes,
        )


def _headers(turn: Turn, ending: Ending) -> dict[str, str]:
    """What every answer carries."""
    headers = {
        "x-flywheel-event-id": turn.event_id,
        "x-flywheel-served-by": ending.by,
        "x-flywheel-version": ending.version,
    }
    if ending.student:
        headers["x-flywheel-confidence"] = f"{ending.student.confidence:.4f}"
        if ending.escalation and ending.by != TEACHER:
            headers["x-flywheel-unsure"] = ending.escalation
    return headers


def _written(turn: Turn, ending: Ending, headers: Mapping[str, str]) -> Response:
    assert ending.said is not None
    said, model = ending.said, ending.said.model or turn.model
    created = int(turn.occurred_at.timestamp())
    write = turn.dialect.streamed if turn.streams else turn.dialect.whole
    content = write(said, turn.request, name=turn.event_id, model=model, created=created)
    if not turn.streams:
        return json_response(content, headers=headers)
    return Response(content, headers=headers, media_type=EVENT_STREAM)


def _usage(said: Completion | None) -> NativeUsage | None:
    if said is None or said.usage is None:
        return None
    prompt, completion = said.usage.prompt_tokens, said.usage.completion_tokens
    return NativeUsage(prompt_tokens=prompt, completion_tokens=completion)
