"""Escalation: an unsure request goes to the teacher, on our money, within the lease."""

import time
from typing import Literal, NamedTuple

import structlog

from pipelines.chat_request import ChatRequest
from pipelines.replies import Completion
from pipelines.types import Task, Usage
from service.gateway.dialects import Dialect
from service.gateway.lease import Lease
from service.gateway.upstream import Upstream, UpstreamError
from service.metrics.gateway import GatewayMetrics
from service.sections import TeacherSettings

log = structlog.get_logger()

# After so many failures in a row unsure requests stop waiting for the teacher, for a while.
FAILURES_TO_PAUSE = 3
LONGEST_PAUSE_SECONDS = 30.0

Outcome = Literal["answered", "no_lease", "teacher_failed"]


class Escalated(NamedTuple):
    """What became of an escalation; what was said, read and as bytes, only when it was answered."""

    outcome: Outcome
    said: Completion | None = None
    body: bytes = b""


class Escalations:
    """Asks the teacher. Whatever goes wrong, the caller still has the student's answer."""

    def __init__(
        self,
        upstream: Upstream,
        lease: Lease,
        settings: TeacherSettings,
        metrics: GatewayMetrics,
    ) -> None:
        self._upstream = upstream
        self._lease = lease
        self._settings = settings
        self._metrics = metrics
        self._most = settings.max_tokens
        self._failures = 0
        self._paused_until = float("-inf")

    async def ask(
        self, body: bytes, request: ChatRequest, dialect: Dialect, task: Task
    ) -> Escalated:
        """The teacher's answer to the app's own messages, whole, or why there is none."""
        escalated = await self._ask(body, request, dialect, task)
        self._metrics.escalations.labels(task.name, escalated.outcome).inc()
        return escalated

    async def _ask(
        self, body: bytes, request: ChatRequest, dialect: Dialect, task: Task
    ) -> Escalated:
        if not self._upstream.configured or time.monotonic() < self._paused_until:
            return Escalated("teacher_failed")
        most = max(1, min(request.token_limit or self._most, self._most))
        content = dialect.bounded(
            body,
            request,
            model=self._upstream.model or request.model,
            limit=(self._settings.max_tokens_field, most),
            told="" if _has_system(request) else task.instructions,
        )
        # No text has more tokens than bytes.
        ceiling = self._price(Usage(prompt_tokens=len(content), completion_tokens=most))
        reservation = await self._lease.reserve(ceiling)
        if reservation is None:
            return Escalated("no_lease")
        try:
            escalated, cost = await self._call(content, ceiling, dialect)
        except UpstreamError as error:
            # Whether the teacher charges for an answer that did not come, nobody knows.
            escalated = Escalated("teacher_failed")
            cost = 0.0 if error.kind == "connect" else ceiling
            self._note_failure()
        except BaseException:  # the app has gone away; the teacher may answer all the same
            self._lease.settle(reservation, ceiling)
            raise
        self._lease.settle(reservation, cost)
        return escalated

    async def _call(
        self, content: bytes, ceiling: float, dialect: Dialect
    ) -> tuple[Escalated, float]:
        """What came of it, and what it cost."""
        async with self._upstream.open(content, path=dialect.path) as answer:
            body = await answer.read()
        if not answer.ok:
            if answer.status == 429 or answer.status >= 500:
                self._note_failure()
            # A refusal is not charged for; behind a failure there may be an answer.
            return Escalated("teacher_failed"), ceiling if answer.status >= 500 else 0.0
        if self._failures >= FAILURES_TO_PAUSE:
            log.info("escalation_resumed")
        self._failures = 0
        said = dialect.read_reply(body)
        cost = self._price(said.usage) if said and said.usage else ceiling
        if said is None or said.whole is None:  # cut, empty or filtered: the student's is better
            return Escalated("teacher_failed"), cost
        return Escalated("answered", said, body), cost

    def _price(self, usage: Usage) -> float:
        prompt = usage.prompt_tokens * self._settings.price_per_million_in
        return (prompt + usage.completion_tokens * self._settings.price_per_million_out) / 1e6

    def _note_failure(self) -> None:
        """Wait longer and longer before the teacher is asked again."""
        self._failures += 1
        beyond = self._failures - FAILURES_TO_PAUSE
        if beyond >= 0:
            pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(beyond, 10))
            self._paused_until = time.monotonic() + pause
            if beyond == 0:
                log.warning("escalation_stopped", reason="the teacher fails", seconds=pause)


def _has_system(request: ChatRequest) -> bool:
    return any(message.role in ("system", "developer") for message in request.messages)
