"""The operator API: everything that the pages show and do, as JSON."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pipelines.types import DeadLetter
from service.console.auth import Sessions, clean_name
from service.operator.operations import Operations
from service.operator.status import ActivityKind, Status
from service.settings import Settings

EVENT_SECONDS = 2.0
STREAM_SECONDS = 600.0  # then the page connects again, with whatever session it has by then
EXCERPT_BYTES = 4_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ApproveBody(BaseModel):
    """The report that was looked at: the approval holds for this content only.

    `serves_nothing` says to know that a version without a threshold answers nothing by itself,
    `above_ceiling` that more is promised than the teacher agrees with itself.
    """

    report: str = Field(pattern="^[0-9a-f]{64}$")
    serves_nothing: bool = False
    above_ceiling: bool = False


class ReasonBody(BaseModel):
    reason: str


class SettleBody(BaseModel):
    """What is right for a prompt on which the teacher contradicts itself."""

    event_id: str
    label: str


class RollbackBody(BaseModel):
    """`to` None: the version that was approved before the champion."""

    to: int | None = None
    reason: str


class CodeBody(BaseModel):
    operator: str | None = None


class OperatorApi:
    """The endpoints. Each calls one operation, as the operator whom the guard has let in."""

    def __init__(self, operations: Operations, sessions: Sessions, settings: Settings) -> None:
        self._operations = operations
        self._sessions = sessions
        self._settings = settings

    def routes(self) -> APIRouter:
        """All under /api."""
        router = APIRouter(prefix="/api")
        for method, path, endpoint in (
            ("GET", "/status", self.status),
            ("GET", "/activity", self.activity),
            ("GET", "/ticks", self.ticks),
            ("GET", "/tasks/{task}/versions", self.versions),
            ("GET", "/tasks/{task}/champions", self.champions),
            ("GET", "/tasks/{task}/versions/{number}", self.show),
            ("GET", "/tasks/{task}/versions/{number}/card", self.card),
            ("POST", "/tasks/{task}/versions/{number}/approve", self.approve),
            ("POST", "/tasks/{task}/versions/{number}/reject", self.reject),
            ("POST", "/tasks/{task}/rollback", self.rollback),
            ("POST", "/tasks/{task}/train", self.train),
            ("GET", "/tasks/{task}/parked", self.parked),
            ("POST", "/tasks/{task}/parked", self.settle_label),
            ("POST", "/jobs/{job}/pause", self.pause),
            ("POST", "/jobs/{job}/resume", self.resume),
            ("GET", "/dead-letters", self.dead_letters),
            ("POST", "/dead-letters/{topic}/{partition}/{offset}/replay", self.replay),
            ("GET", "/unknown-outcomes", self.unknown_outcomes),
            ("POST", "/unknown-outcomes/{key}/release", self.release),
            ("POST", "/unknown-outcomes/{key}/drop", self.drop),
            ("GET", "/offsets", self.offsets),
            ("POST", "/backups", self.backups),
            ("POST", "/login-codes", self.login_codes),
            ("GET", "/events", self.events),
        ):
            router.add_api_route(path, endpoint, methods=[method], response_model=None)
        return router

    def status(self) -> Response:
        """What is served, how good it is, what waits, and every job's last tick."""
        return as_json(self._operations.status())

    def activity(
        self,
        limit: int = Query(50, ge=1, le=1000),
        before: AwareDatetime | None = None,
        kind: ActivityKind | None = None,
    ) -> Response:
        """What happened, newest first; of one `kind` or of all, `before` a moment or until now."""
        return as_json(self._operations.activity(limit, before, kind))

    def ticks(self, limit: int = Query(100, ge=1, le=1000), job: str | None = None) -> Response:
        """What the jobs did, and why they did nothing."""
        return as_json(self._operations.ticks(limit, job))

    def versions(self, task: str) -> Response:
        """All versions and what became of them."""
        return as_json(self._operations.versions(task))

    def champions(self, task: str) -> Response:
        """Who was the champion when, and who made it so."""
        return as_json(self._operations.champions(task))

    def show(self, task: str, number: int) -> Response:
        """One version with its report."""
        return as_json(self._operations.show(task, number))

    def card(self, task: str, number: int) -> Response:
        """Its model card, as Markdown in plain text."""
        # As plain text every browser shows it.
        return Response(self._operations.card(task, number), media_type="text/plain")

    def approve(self, request: Request, task: str, number: int, body: ApproveBody) -> Response:
        """Let it serve. `report`: hash of the one seen; `serves_nothing`: with no threshold."""
        done = self._operations.approve(
            task,
            number,
            report=body.report,
            operator=request.state.operator,
            serves_nothing=body.serves_nothing,
            above_ceiling=body.above_ceiling,
        )
        return as_json(done)

    def reject(self, request: Request, task: str, number: int, body: ReasonBody) -> Response:
        """Say no to it, with the reason."""
        operator = request.state.operator
        return as_json(self._operations.reject(task, number, reason=body.reason, operator=operator))

    def rollback(self, request: Request, task: str, body: RollbackBody) -> Response:
        """Serve version `to` again; left out, the one that was approved before."""
        operator = request.state.operator
        done = self._operations.rollback(task, body.to, reason=body.reason, operator=operator)
        champion = [v for v in self._operations.versions(task) if v.student == done.student]
        return as_json({"name": f"{task}-v{champion[0].number}", "decision": done})

    def train(self, request: Request, task: str) -> Response:
        """Train without waiting for the schedule."""
        self._operations.request_train(task, operator=request.state.operator)
        return as_json({"requested": task})

    def pause(self, request: Request, job: str) -> Response:
        """Stop a job, or `all`, from the next tick on."""
        self._operations.pause(job, operator=request.state.operator)
        return as_json({"paused": job})

    def resume(self, request: Request, job: str) -> Response:
        """Let a job, or `all`, run again."""
        self._operations.resume(job, operator=request.state.operator)
        return as_json({"resumed": job})

    def dead_letters(
        self, limit: int = Query(100, ge=1, le=1000), pending: bool = False
    ) -> Response:
        """What could not be read, and why."""
        found = self._operations.dead_letters(limit, pending_only=pending)
        return as_json([letter_content(letter) for letter in found])

    def replay(self, request: Request, topic: str, partition: int, offset: int) -> Response:
        """Put it back onto the topic, as it came."""
        self._operations.replay(topic, partition, offset, operator=request.state.operator)
        return as_json({"replayed": f"{topic}/{partition}/{offset}"})

    def parked(self, task: str) -> Response:
        """Prompts on which the teacher contradicts itself: they train nobody."""
        return as_json([one._asdict() for one in self._operations.parked(task)])

    def settle_label(self, request: Request, task: str, body: SettleBody) -> Response:
        """A person's word for one of them."""
        operator = request.state.operator
        self._operations.settle_label(task, body.event_id, body.label, operator=operator)
        return as_json({"settled": body.event_id})

    def unknown_outcomes(self) -> Response:
        """Teacher calls that were sent and never answered."""
        return as_json(self._operations.unknown_outcomes())

    def release(self, request: Request, key: str) -> Response:
        """Ask the teacher again."""
        self._operations.release(key, operator=request.state.operator)
        return as_json({"released": key})

    def drop(self, request: Request, key: str) -> Response:
        """Never ask again."""
        self._operations.drop(key, operator=request.state.operator)
        return as_json({"dropped": key})

    def offsets(self) -> Response:
        """Where each topic was read to, by partition."""
        return as_json(self._operations.offsets())

    def backups(self, request: Request) -> Response:
        """Freeze one state of the database in files, for `flywheel backup` on the same host."""
        return as_json(self._operations.freeze(operator=request.state.operator))

    def login_codes(self, request: Request, body: CodeBody | None = None) -> Response:
        """A link that logs a browser in once, within two minutes."""
        named = body.operator if body and body.operator else request.state.operator
        code = self._sessions.make_code(clean_name(named))
        base = self._settings.learner.public_url.rstrip("/") or str(request.base_url).rstrip("/")
        return as_json({"code": code, "link": f"{base}/login?code={code}"})

    async def events(self, request: Request) -> StreamingResponse:
        """Says `changed` when the status is another one; the page then looks again."""
        return StreamingResponse(
            _changes(request, self._operations), media_type="text/event-stream"
        )


def as_json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def letter_content(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter with as much of its payload as a person wants to see."""
    payload = letter.payload or b""
    return {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "received_at": letter.received_at,
        "replayed_at": letter.replayed_at,
        "bytes": len(payload),
        "excerpt": payload[:EXCERPT_BYTES].decode("utf-8", "replace"),
        "cut": len(payload) > EXCERPT_BYTES,
        "can_replay": letter.payload is not None and letter.replayed_at is None,
    }


def fingerprint(status: Status) -> str:
    """Another one when something on the overview is another one, the clock apart."""
    return hashlib.sha256(msgspec.json.encode(replace(status, at=EPOCH))).hexdigest()[:16]


async def _changes(request: Request, operations: Operations) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    last = ""
    stopping = request.app.state.stopping
    for _ in range(int(STREAM_SECONDS / EVENT_SECONDS)):
        if stopping.is_set() or await request.is_disconnected():
            return
        now = fingerprint(await run_in_threadpool(operations.status))
        if now != last:
            yield f"event: changed\ndata: {now}\n\n"
            last = now
        else:
            yield ": still here\n\n"
        await asyncio.sleep(EVENT_SECONDS)
