"""POST /v1/feedback: what a person says about an answer becomes an event of its own."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from pipelines.chat_request import WireMessage, plain_messages
from pipelines.records.native import NativeFeedback, NativeRecord
from pipelines.replies import MALFORMED
from pipelines.types import Task
from service.gateway.capture import Capture
from service.gateway.dialects import ANSWER_PREFIXES
from service.gateway.recent import Answered, Recent
from service.gateway.turn import Rejected, json_response, read_body
from service.gateway.wire import encode
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
        task = self._tasks[answered.record.task or ""]
        if given.correction is not None and given.correction not in task.labels:
            raise Rejected(
                400,
                f"the correction is not one of the {len(task.labels)} labels of {task.name}",
                code="unknown_label",
            )
        record = _judged(answered, given)
        self._capture.put(record)
        self._metrics.feedback.labels(task.name, given.verdict).inc()
        told = {"status": "taken", "event_id": record.event_id}
        return json_response(encode(told), status=202)

    def _find(self, given: FeedbackRequest) -> Answered:
        """What is judged: remembered, or told again."""
        name = given.id
        for prefix in ANSWER_PREFIXES:
            name = name.removeprefix(prefix)
        found = self._recent.find(name) or self._recent.find(given.id)
        if found is not None:
            return found
        task = self._claims.get(given.model or "")
        messages = plain_messages(given.messages or ())
        if task is None or not messages or not 0 < len(name) <= MAX_ID:
            raise Rejected(
                404,
                "this answer is not remembered (any more); send its messages and model again "
                "with the feedback",
                code="unknown_answer",
            )
        told = NativeRecord(
            schema="flywheel.prompt/1",
            event_id=name,
            task=task,
            model=given.model or "",
            messages=messages,
        )
        return Answered(told, size=0)


def _judged(answered: Answered, given: FeedbackRequest) -> NativeRecord:
    """The record of the answer again, with a verdict on it."""
    answered.verdicts += 1
    # What is told again may have been judged before.
    number = answered.verdicts if answered.size else uuid4().hex[:8]
    record = answered.record
    return replace(
        record,
        event_id=f"{record.event_id}:feedback:{number}",
        occurred_at=datetime.now(UTC),
        feedback=NativeFeedback(verdict=given.verdict, correction=given.correction),
        attributes={"feedback_on": record.event_id or ""},
    )
