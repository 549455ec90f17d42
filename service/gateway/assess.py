"""POST /v1/assess: what a student says to events that somebody else answered."""

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipelines.render import classifier_text
from pipelines.replies import MALFORMED
from pipelines.types import Task
from service.gateway.generations import Generation, Generations
from service.gateway.student import StudentReply
from service.gateway.turn import Rejected, json_response, read_body
from service.gateway.wire import encode
from service.planes import AssessAnswer, AssessReply, AssessRequest

MOST_EVENTS = 256
MAX_BODY_BYTES = 32 << 20
# The learner waits for ten. What a slow student has not read by then goes unassessed.
MOST_SECONDS = 8.0


class Assess:
    """The endpoint. Requests of apps go first; nothing of this is captured."""

    def __init__(self, *, tasks: Mapping[str, Task], generations: Generations) -> None:
        self._tasks = tasks
        self._generations = generations

    async def __call__(self, request: Request) -> Response:
        """What the student would say; what a slow one has not read in time is left out."""
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            wanted = msgspec.json.decode(body, type=AssessRequest)
        except MALFORMED:
            raise Rejected(
                400,
                'wanted: {"task": ..., "events": [{"event_id": ..., "messages": [...]}]}',
                code="malformed_request",
            ) from None
        if len(wanted.events) > MOST_EVENTS:
            raise Rejected(400, f"at most {MOST_EVENTS} events at once", code="too_many_events")
        task = self._tasks.get(wanted.task)
        if task is None:
            raise Rejected(404, "there is no task of this name", code="unknown_task")
        generation = self._generations.resident(task.name, wanted.role)
        if generation is None:
            raise Rejected(409, f"{task.name} has no {wanted.role} student", code="no_student")
        return json_response(encode(await _assess(wanted, task, generation)))


async def _assess(wanted: AssessRequest, task: Task, generation: Generation) -> AssessReply:
    texts = [classifier_text(event.messages, task) for event in wanted.events]
    asked = [asyncio.ensure_future(generation.answer(text, patient=True)) for text in texts]
    if asked:
        await asyncio.wait(asked, timeout=MOST_SECONDS)
    for late in asked:
        late.cancel()  # nothing, where it is done
    replies = await asyncio.gather(*asked, return_exceptions=True)
    answers = [
        _answer(event.event_id, text, reply, generation)
        for event, text, reply in zip(wanted.events, texts, replies, strict=True)
        if not isinstance(reply, BaseException)
    ]
    if asked and not answers:
        raise Rejected(503, f"the student of {task.name} gives no answer", code="student_failed")
    return AssessReply(generation.version, answers)


def _answer(event_id: str, text: str, reply: StudentReply, generation: Generation) -> AssessAnswer:
    reach, unsure = generation.judge(text, reply)
    return AssessAnswer(event_id, reply.label, reply.confidence, reach, unsure or "")
