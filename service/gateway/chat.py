"""POST /v1/chat/completions and /v1/responses: the student answers, or the teacher does.

Everything that the app can see of a swap, a dead learner or a broken teacher is decided here.
"""

import asyncio
from collections.abc import Mapping, Set
from contextlib import AsyncExitStack
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from pipelines.chat_request import (
    NOT_ALLOWED,
    STORED,
    ChatRequest,
    Past,
    attachments,
    plain_messages,
    why_past,
)
from pipelines.intake import UNSURE
from pipelines.label import write_answer
from pipelines.reach import Reach
from pipelines.records.native import NativeStudent
from pipelines.render import classifier_text
from pipelines.replies import Completion
from pipelines.types import Task, Usage
from service.gateway.allowance import Allowance
from service.gateway.dialects import CHAT, Dialect
from service.gateway.endings import (
    NOBODY,
    TEACHER,
    Ending,
    Endings,
    Streaming,
    Verbatim,
    failed,
    passed_through,
)
from service.gateway.escalation import Escalations
from service.gateway.formats import Formats
from service.gateway.generations import Generation, Generations
from service.gateway.responses import RESPONSES
from service.gateway.router import Unsure
from service.gateway.student import StudentFailed, StudentReply
from service.gateway.turn import Rejected, Turn, does_not_pass, read_attributes, read_body
from service.gateway.upstream import Upstream, UpstreamError
from service.gateway.wire import replace_fields
from service.metrics.gateway import GatewayMetrics

# Why there is no teacher's answer, by the outcome of an escalation.
NO_TEACHER: Mapping[str, str] = {
    "no_lease": "no escalation is left",
    "teacher_failed": "the teacher does not answer",
}


class Chat:
    """An endpoint of either dialect, with all that it needs."""

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        claims: Mapping[str, str],
        refusing: frozenset[str],
        stateless: frozenset[str],
        passes: frozenset[str],
        generations: Generations,
        upstream: Upstream,
        escalations: Escalations,
        endings: Endings,
        metrics: GatewayMetrics,
        allowance: Allowance,
        max_body_bytes: int,
    ) -> None:
        self._allowance = allowance
        self._tasks = tasks
        self._claims = claims
        self._refusing = refusing  # tasks with when_unsure = "refuse"
        self._stateless = stateless  # tasks whose answers nobody looks up again
        self._passes = passes  # paths that pass also for models of no task
        self._generations = generations
        self._upstream = upstream
        self._escalations = escalations
        self._endings = endings
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._formats = Formats()

    async def __call__(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answered(request, CHAT)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._answered(request, RESPONSES)

    async def _answered(self, request: Request, dialect: Dialect) -> Response:
        """Answers as the OpenAI API does, plain or streamed."""
        body = await read_body(request, self._max_body_bytes)
        turn = self._begin(request, body, dialect)
        if turn.past == "content" and turn.request is not None:
            turn.attachments = await asyncio.to_thread(attachments, turn.request.messages)
        try:
            ending = await self._answer(turn, request)
        except UpstreamError as error:
            ending = failed(Rejected(error.status, str(error), code=f"teacher_{error.kind}"))
        return self._endings.close(turn, ending)

    def _begin(self, request: Request, body: bytes, dialect: Dialect) -> Turn:
        """Read what decides about the request. Raises `Rejected` for what is no JSON."""
        wanted, envelope = dialect.read_request(body)
        if envelope is None:
            problem = "the body is not a JSON object with a model and messages (or input)"
            raise Rejected(400, problem, code="malformed_request")
        task = self._tasks.get(self._claims.get(envelope.model, ""))
        if task is None and dialect.path not in self._passes:
            raise does_not_pass("POST", dialect.path)
        turn = Turn(
            body=body,
            model=envelope.model,
            streams=bool(envelope.stream),
            task=task,
            request=wanted,
            messages=plain_messages(wanted.messages) if wanted and task else (),
            attributes=read_attributes(request.scope["headers"]),
            dialect=dialect,
        )
        if task is not None:
            turn.past = _past(wanted, turn)
        return turn

    async def _answer(self, turn: Turn, request: Request) -> Ending:
        task = turn.task
        if task is None:
            body = self._allowance.checked(turn.body, turn.model)
            self._allowance.count()
            return await self._pass_through(turn, body, request)
        allowed = self._formats.allowed(turn.request and turn.request.response_format, task)
        if turn.past is None and not allowed:
            turn.past = "format"
        if turn.past is not None:
            self._metrics.unsupported.labels(task.name, turn.past).inc()
        else:
            # From here to its end the request knows this generation and no other.
            generation = self._generations.champion(task.name)
            if self._is_to_be_kept(turn, task):
                self._not_answered(turn, task, STORED)
            elif generation is not None and (
                ending := await self._ask_student(turn, task, generation, allowed)
            ):
                return ending
        # The teacher may not know the name under which the app asks for the task.
        model = self._upstream.model or turn.model
        return await self._pass_through(turn, replace_fields(turn.body, {"model": model}), request)

    async def _ask_student(
        self, turn: Turn, task: Task, generation: Generation, allowed: Set[str]
    ) -> Ending | None:
        """None: what the student would answer is not what the request allows."""
        text, version = classifier_text(turn.messages, task), generation.version
        try:
            read = await generation.answer(text)
        except StudentFailed:
            none = Ending(by=NOBODY, outcome="failed", version=version, unsure="student_failed")
            return await self._escalate(turn, task, none)
        if read.label not in allowed:
            self._not_answered(turn, task, NOT_ALLOWED)
            return None
        if read.truncated:
            self._metrics.truncated.labels(task.name).inc()
        reach, unsure = generation.judge(text, read)
        answered = _student_answers(version, read, task, reach, unsure)
        if unsure is None:
            return answered
        self._metrics.unsure.labels(task.name, unsure).inc()
        marked = replace(answered, outcome="unsure", unsure=unsure)
        if task.name in self._refusing:
            marked = replace(marked, by=NOBODY, outcome="refused", said=None)
        return await self._escalate(turn, task, marked)

    def _is_to_be_kept(self, turn: Turn, task: Task) -> bool:
        """Whether the teacher is to keep the answer, for a request that may come later."""
        kept = turn.request is not None and turn.dialect.state(turn.request) == "kept"
        return kept and task.name not in self._stateless

    def _not_answered(self, turn: Turn, task: Task, why: str) -> None:
        """A student may learn from it, and not answer it."""
        self._metrics.unsupported.labels(task.name, why).inc()
        turn.attributes[UNSURE] = why

    async def _escalate(self, turn: Turn, task: Task, otherwise: Ending) -> Ending:
        """What the teacher says in the student's place, or `otherwise`."""
        assert turn.request is not None
        escalated = await self._escalations.ask(turn.body, turn.request, turn.dialect, task)
        otherwise = replace(otherwise, escalation=escalated.outcome)
        if escalated.said is not None:
            return replace(
                otherwise,
                by=TEACHER,
                outcome="escalated",
                version=TEACHER,
                said=escalated.said,
                # The teacher was not asked for a stream.
                body=None if turn.streams else Verbatim(escalated.body),
            )
        if otherwise.by == NOBODY:
            return replace(otherwise, body=_no_answer(task, otherwise))
        return otherwise

    async def _pass_through(self, turn: Turn, body: bytes, request: Request) -> Ending:
        """The app's own request to the teacher, and the teacher's own answer back."""
        if not self._upstream.configured:
            return failed(_no_teacher(turn))
        async with AsyncExitStack() as stack:
            reply = await stack.enter_async_context(
                self._upstream.open(
                    body,
                    request.headers,
                    path=turn.dialect.path,
                    query=request.scope["query_string"].decode("latin-1"),
                    passes=True,
                )
            )
            if reply.streams:
                return passed_through(reply.ok, None, Streaming(reply, stack.pop_all()))
            content = await reply.read()
        said = turn.dialect.read_reply(content) if turn.task else None
        own = Verbatim(content, reply.status, reply.headers(), media_type=None)
        return passed_through(reply.ok, said, own)


def _past(wanted: ChatRequest | None, turn: Turn) -> Past | None:
    if wanted is None or not turn.messages:
        return "malformed"
    if turn.dialect.state(wanted) == "needed":
        return "state"
    return why_past(wanted)


def _student_answers(
    version: str, read: StudentReply, task: Task, reach: Reach | None, unsure: Unsure | None
) -> Ending:
    return Ending(
        by="student",
        outcome="answered",
        version=version,
        student=NativeStudent(
            version=version,
            label=read.label,
            confidence=read.confidence,
            reach=reach,
            unsure=unsure or "",
        ),
        said=Completion(
            content=write_answer(read.label, task),
            finish_reason="stop",
            model=version,
            # The student writes no tokens; a label counts as one.
            usage=Usage(prompt_tokens=read.tokens, completion_tokens=1),
        ),
    )


def _no_answer(task: Task, ending: Ending) -> Rejected:
    """Neither from the student nor from the teacher."""
    why = NO_TEACHER[ending.escalation]
    if ending.outcome == "refused":
        code = f"unsure_{ending.escalation}"
        return Rejected(503, f"the student is unsure, and {why}", code=code)
    problem = f"the student of {task.name} has failed, and {why}"
    return Rejected(503, problem, code="student_failed")


def _no_teacher(turn: Turn) -> Rejected:
    if turn.task is None:
        problem = f"no task claims the model '{turn.model[:100]}', and no teacher is set"
    else:
        problem = (
            f"the task {turn.task.name} has no student for this request, and no teacher is set"
        )
    return Rejected(503, f"{problem}; set teacher.base_url", code="no_teacher")
