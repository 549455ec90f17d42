"""POST /v1/chat/completions: the student answers, or the teacher does.

Everything that the app can see of a swap, a dead learner or a broken teacher is decided here.
"""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from pipelines.label import write_answer
from pipelines.records.native import NativeRecord, NativeStudent, NativeUsage
from pipelines.render import classifier_text
from pipelines.types import ServedBy, Task
from service.gateway.batcher import Reply as Read
from service.gateway.capture import Capture
from service.gateway.escalation import Escalated, Escalations
from service.gateway.generations import Generation, Generations
from service.gateway.recent import Answered, Recent
from service.gateway.relay import Relay
from service.gateway.router import MAX_CHARACTERS, unsupported, why_unsure
from service.gateway.students import StudentFailed
from service.gateway.turn import (
    Rejected,
    Turn,
    json_response,
    read_attributes,
    read_body,
    rejection,
)
from service.gateway.upstream import Upstream, UpstreamError
from service.gateway.wire import (
    EVENT_STREAM,
    MALFORMED,
    TeacherReply,
    WireUsage,
    chunks,
    completion,
    decode_chat,
    decode_envelope,
    plain_messages,
    read_reply,
    replace_fields,
    wire_usage,
)
from service.metrics.gateway import GatewayMetrics

TEACHER: Literal["teacher"] = "teacher"
NOBODY = "nobody"
# Why there is no teacher's answer, by the outcome of an escalation.
NO_TEACHER: Mapping[str, str] = {
    "no_lease": "no escalation is left",
    "teacher_failed": "the teacher does not answer",
}
# Clients must not try again at once: the answer will not be another one.
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}


class Chat:
    """The endpoint, with all that it needs."""

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        claims: Mapping[str, str],
        refusing: frozenset[str],
        generations: Generations,
        upstream: Upstream,
        escalations: Escalations,
        capture: Capture,
        recent: Recent,
        metrics: GatewayMetrics,
        max_body_bytes: int,
    ) -> None:
        self._tasks = tasks
        self._claims = claims
        self._refusing = refusing  # tasks with when_unsure = "refuse"
        self._generations = generations
        self._upstream = upstream
        self._escalations = escalations
        self._capture = capture
        self._recent = recent
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Answers as the OpenAI API does, plain or streamed."""
        turn = self._begin(request, await read_body(request, self._max_body_bytes))
        try:
            return await self._answer(turn, request)
        except UpstreamError as error:
            return self._failed(
                turn, Rejected(error.status, str(error), code=f"teacher_{error.kind}")
            )

    def _begin(self, request: Request, body: bytes) -> Turn:
        """Read what decides about the request. Raises `Rejected` for what is no JSON."""
        try:
            wanted = decode_chat(body)
        except MALFORMED:
            wanted = None
        try:
            envelope = wanted or decode_envelope(body)
        except MALFORMED:
            problem = "the body is not a JSON object with a model and messages"
            raise Rejected(400, problem, code="malformed_request") from None
        task = self._tasks.get(self._claims.get(envelope.model, ""))
        return Turn(
            body=body,
            model=envelope.model,
            streams=bool(envelope.stream),
            task=task,
            request=wanted,
            messages=plain_messages(wanted.messages) if wanted and task else None,
            attributes=read_attributes(request.scope["headers"]),
        )

    async def _answer(self, turn: Turn, request: Request) -> Response:
        task = turn.task
        if task is None:
            return await self._pass_through(turn, turn.body, request)
        if turn.request is None:
            beyond = "malformed"
        else:
            beyond = unsupported(turn.request, task) or ("" if turn.messages else "content")
        if beyond:
            self._metrics.unsupported.labels(task.name, beyond).inc()
        else:
            turn.captured = True
            # From here to its end the request knows this generation and no other.
            generation = self._generations.champion(task.name)
            if generation is not None:
                return await self._ask_student(turn, task, generation)
        # The teacher may not know the name under which the app asks for the task.
        model = self._upstream.model or turn.model
        return await self._pass_through(turn, replace_fields(turn.body, {"model": model}), request)

    async def _ask_student(self, turn: Turn, task: Task, generation: Generation) -> Response:
        text = classifier_text(turn.messages or (), task)
        try:
            read = await generation.answer(text[:MAX_CHARACTERS])
        except StudentFailed:
            return await self._answer_instead(turn, task, generation)
        if read.truncated:
            self._metrics.truncated.labels(task.name).inc()
        student = NativeStudent(
            version=generation.version, label=read.label, confidence=read.confidence
        )
        unsure = why_unsure(text, read.confidence, generation.live.threshold)
        if unsure is None:
            return self._student_answers(turn, task, student, read)
        self._metrics.unsure.labels(task.name, unsure).inc()
        turn.attributes["unsure"] = unsure
        assert turn.request is not None
        escalated = await self._escalations.ask(turn.body, turn.request, turn.messages or (), task)
        turn.attributes["escalation"] = escalated.outcome
        if escalated.reply is not None:
            return self._teacher_answers(turn, escalated, escalated.reply, student)
        if task.name in self._refusing:
            return self._refuse(turn, student, escalated.outcome)
        return self._student_answers(turn, task, student, read, unsure=escalated.outcome)

    async def _answer_instead(self, turn: Turn, task: Task, generation: Generation) -> Response:
        """The student has failed: the teacher answers, on the terms of an unsure request."""
        assert turn.request is not None
        turn.attributes["unsure"] = "student_failed"
        escalated = await self._escalations.ask(turn.body, turn.request, turn.messages or (), task)
        turn.attributes["escalation"] = escalated.outcome
        if escalated.reply is not None:
            return self._teacher_answers(turn, escalated, escalated.reply, None)
        self._finish(turn, NOBODY, "failed")
        self._keep(turn, "app")
        problem = f"the student of {task.name} has failed, and {NO_TEACHER[escalated.outcome]}"
        headers = turn.headers(served_by=NOBODY, version=generation.version)
        return rejection(Rejected(503, problem, code="student_failed"), headers)

    def _student_answers(
        self,
        turn: Turn,
        task: Task,
        student: NativeStudent,
        read: Read,
        unsure: str | None = None,
    ) -> Response:
        answer = write_answer(student.label, task)
        headers = turn.headers(
            served_by="student",
            version=student.version,
            confidence=student.confidence,
            unsure=unsure,
        )
        # The student writes no tokens; a label counts as one.
        usage = WireUsage(
            prompt_tokens=read.tokens, completion_tokens=1, total_tokens=read.tokens + 1
        )
        self._finish(turn, "student", "unsure" if unsure else "answered")
        self._keep(turn, "student", answer=answer, student=student)
        return _respond(turn, headers, student.version, answer, usage)

    def _teacher_answers(
        self,
        turn: Turn,
        escalated: Escalated,
        reply: TeacherReply,
        student: NativeStudent | None,
    ) -> Response:
        confidence = student.confidence if student else None
        headers = turn.headers(served_by=TEACHER, version=TEACHER, confidence=confidence)
        self._finish(turn, TEACHER, "escalated")
        self._keep(turn, TEACHER, answer=reply.content, student=student, reply=reply)
        if not turn.streams:
            return json_response(escalated.body, headers=headers)
        model, usage = reply.model or turn.model, wire_usage(reply.usage)
        finish = reply.finish_reason or "stop"
        return _respond(turn, headers, model, reply.content or "", usage, finish)

    def _refuse(self, turn: Turn, student: NativeStudent, outcome: str) -> Response:
        self._finish(turn, NOBODY, "refused")
        self._keep(turn, "app", student=student)
        headers = turn.headers(
            served_by=NOBODY,
            version=student.version,
            confidence=student.confidence,
            unsure=outcome,
        )
        problem = f"the student is unsure, and {NO_TEACHER[outcome]}"
        refused = Rejected(503, problem, code=f"unsure_{outcome}")
        return rejection(refused, {**headers, **NO_RETRY})

    async def _pass_through(self, turn: Turn, body: bytes, request: Request) -> Response:
        """The app's own request to the teacher, and the teacher's own answer back."""
        if not self._upstream.configured:
            return self._failed(turn, _no_teacher(turn))
        async with AsyncExitStack() as stack:
            reply = await stack.enter_async_context(self._upstream.open(body, request.headers))
            headers = {**reply.headers(), **turn.headers(served_by=TEACHER, version=TEACHER)}
            if reply.streams:
                # The relay closes the reply, whenever it ends.
                note = partial(self._note_passed, turn)
                return Relay(reply, stack.pop_all(), headers, note)
            content = await reply.read()
        self._note_passed(turn, reply.ok, read_reply(content) if turn.captured else None)
        return Response(content, reply.status, headers)

    def _note_passed(self, turn: Turn, ok: bool, reply: TeacherReply | None) -> None:
        self._finish(turn, TEACHER if ok else NOBODY, "passed_through" if ok else "failed")
        if ok and turn.captured:
            self._keep(turn, TEACHER, answer=reply.content if reply else None, reply=reply)

    def _failed(self, turn: Turn, problem: Rejected) -> Response:
        self._finish(turn, NOBODY, "failed")
        return rejection(problem, turn.headers(served_by=NOBODY, version=TEACHER))

    def _finish(self, turn: Turn, served_by: str, outcome: str) -> None:
        self._metrics.requests.labels(turn.task_name, served_by, outcome).inc()
        seconds = time.perf_counter() - turn.started
        self._metrics.request_seconds.labels(served_by).observe(seconds)

    def _keep(
        self,
        turn: Turn,
        served_by: ServedBy,
        *,
        answer: str | None = None,
        student: NativeStudent | None = None,
        reply: TeacherReply | None = None,
    ) -> None:
        """Remember the prompt for feedback, and put it on the topic."""
        messages = tuple(turn.messages or ())
        self._capture.put(
            NativeRecord(
                schema="flywheel.prompt/1",
                event_id=turn.event_id,
                task=turn.task_name,
                model=turn.model,
                occurred_at=turn.occurred_at,
                messages=messages,
                answer=answer,
                served_by=served_by,
                student=student,
                teacher_answer=reply.answer if reply else None,
                teacher_model=(reply.model or self._upstream.model or None) if reply else None,
                usage=_native_usage(reply),
                user=turn.user,
                attributes=turn.attributes,
            )
        )
        answered = Answered(
            event_id=turn.event_id,
            task=turn.task_name,
            model=turn.model,
            messages=messages,
            answer=answer,
            served_by=served_by,
            student=student,
            user=turn.user,
            size=len(turn.body),
        )
        self._recent.add(answered, reply.id if reply else None)


def _respond(
    turn: Turn,
    headers: Mapping[str, str],
    model: str,
    answer: str,
    usage: WireUsage,
    finish_reason: str = "stop",
) -> Response:
    created = int(turn.occurred_at.timestamp())
    if not turn.streams:
        content = completion(
            event_id=turn.event_id, model=model, answer=answer, usage=usage, created=created
        )
        return json_response(content, headers=headers)
    wanted = turn.request is not None and turn.request.wants_usage
    content = chunks(
        event_id=turn.event_id,
        model=model,
        answer=answer,
        usage=usage if wanted else None,
        created=created,
        finish_reason=finish_reason,
    )
    return Response(content, headers=headers, media_type=EVENT_STREAM)


def _native_usage(reply: TeacherReply | None) -> NativeUsage | None:
    if reply is None or reply.usage is None:
        return None
    prompt, completion = reply.usage.prompt_tokens, reply.usage.completion_tokens
    return NativeUsage(prompt_tokens=prompt, completion_tokens=completion)


def _no_teacher(turn: Turn) -> Rejected:
    if turn.task is None:
        problem = f"no task claims the model '{turn.model[:100]}', and no teacher is set"
    else:
        problem = (
            f"the task {turn.task.name} has no student for this request, and no teacher is set"
        )
    return Rejected(503, f"{problem}; set teacher.base_url", code="no_teacher")
