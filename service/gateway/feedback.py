"""POST /v1/feedback: what a person says about an answer becomes an event of its own."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipelines.records.native import NativeFeedback, NativeRecord
from pipelines.types import Message, Task
from service.gateway.capture import Capture
from service.gateway.recent import Answered, Recent
from service.gateway.turn import Rejected, json_response, read_body
from service.gateway.wire import ID_PREFIX, MALFORMED, WireMessage, encode, plain_messages
from service.metrics.gateway import GatewayMetrics

MAX_ID = 150


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`messages` and `model` are needed only when the answer is forgotten."""

    id: str
    verdict: Literal["good", "bad"]
    correction: str | None = None
    messages: list[WireMessage] | None = None
    model: str | None = None


class Feedback:
    """The endpoint."""

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        claims: Mapping[str, str],
        recent: Recent,
        capture: Capture,
        metrics: GatewayMetrics,
        max_body_bytes: int,
    ) -> None:
        self._tasks = tasks
        self._claims = claims
        self._recent = recent
        self._capture = capture
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """A verdict on an answer, by its id; `correction` is what would have been right."""
        body = await read_body(request, self._max_body_bytes)
        try:
            given = msgspec.json.decode(body, type=FeedbackRequest)
        except MALFORMED:
            raise Rejected(
                400,
                'feedback is {"id": ..., "verdict": "good" or "bad", "correction": a label}',
                code="malformed_request",
            ) from None
        answered = self._find(given)
        labels = self._tasks[answered.task].labels
        if given.correction is not None and given.correction not in labels:
            raise Rejected(
                400,
                f"the correction is not one of the {len(labels)} labels of {answered.task}",
                code="unknown_label",
            )
        event_id = self._take(given, answered)
        return json_response(encode({"status": "taken", "event_id": event_id}), status=202)

    def _find(self, given: FeedbackRequest) -> Answered:
        """What is judged: remembered, or told again."""
        name = given.id.removeprefix(ID_PREFIX)
        found = self._recent.find(name) or self._recent.find(given.id)
        if found is not None:
            return found
        task = self._claims.get(given.model or "")
        messages = plain_messages(given.messages) if given.messages else None
        if task is None or messages is None or not 0 < len(name) <= MAX_ID:
            raise Rejected(
                404,
                "this answer is not remembered (any more); send its messages and model again "
                "with the feedback",
                code="unknown_answer",
            )
        return _told_again(name, task, given.model or "", messages)

    def _take(self, given: FeedbackRequest, answered: Answered) -> str:
        answered.feedback += 1
        again = answered.feedback if answered.size else uuid4().hex[:8]
        event_id = f"{answered.event_id}:feedback:{again}"
        self._capture.put(
            NativeRecord(
                schema="flywheel.prompt/1",
                event_id=event_id,
                task=answered.task,
                model=answered.model,
                occurred_at=datetime.now(UTC),
                messages=tuple(answered.messages),
                answer=answered.answer,
                served_by=answered.served_by,
                student=answered.student,
                feedback=NativeFeedback(verdict=given.verdict, correction=given.correction),
                user=answered.user,
                attributes={"feedback_on": answered.event_id},
            )
        )
        self._metrics.feedback.labels(answered.task, given.verdict).inc()
        return event_id


def _told_again(name: str, task: str, model: str, messages: tuple[Message, ...]) -> Answered:
    return Answered(
        event_id=name,
        task=task,
        model=model,
        messages=messages,
        answer=None,
        served_by="app",
        student=None,
        user=None,
        size=0,
    )
