"""The rest of /v1: what no student does passes to the teacher and back, streamed, as it is."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pipelines.records.common import user_name
from pipelines.records.native import SCHEMA, NativeRecord
from pipelines.replies import read_object
from pipelines.types import Message
from service.gateway.access import Endpoint
from service.gateway.allowance import Allowance
from service.gateway.capture import Capture
from service.gateway.turn import KNOWN, Rejected, does_not_pass, read_body, rejection
from service.gateway.upstream import Reply, Upstream, UpstreamError
from service.gateway.wire import read_request, replace_fields
from service.metrics.gateway import GatewayMetrics

# One that is longer is streamed, and keeps the model's name that the app gave it.
LONGEST_LOOKED_AT = 1 << 20
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._:-]+(?:/[A-Za-z0-9._:-]+)*")


class Passing:
    """Only the endpoints of `gateway.pass_through`: others read or change what an account keeps."""

    def __init__(
        self,
        *,
        own: Mapping[str, Endpoint],
        endpoints: Sequence[str],
        claims: Mapping[str, str],
        upstream: Upstream,
        metrics: GatewayMetrics,
        capture: Capture,
        allowance: Allowance,
        max_body_bytes: int,
    ) -> None:
        self._allowance = allowance
        self._max_body_bytes = max_body_bytes
        self._capture = capture
        self._own = own  # where a path is ours but for its slashes
        self._endpoints = frozenset(endpoints)
        self._claims = claims
        self._upstream = upstream
        self._metrics = metrics

    async def __call__(self, request: Request) -> Response:
        """A POST to one of the endpoints, or a GET of one model."""
        path = _plain(request.path_params["path"])
        if request.method == "POST" and path in self._own:
            return await self._own[path](request)
        reads_a_model = request.method == "GET" and re.fullmatch(r"models/[^/]+", path)
        if not reads_a_model and (request.method != "POST" or not self._passes(path)):
            raise does_not_pass(request.method, path)
        if not self._upstream.configured:
            raise Rejected(503, "there is no teacher to pass it to", code="no_teacher")
        if reads_a_model:
            self._allowance.check(path.removeprefix("models/"))
        body, claimed = await self._body(request)
        self._allowance.count()
        try:
            response = await self._passed(request, path, body)
        except UpstreamError as error:
            self._metrics.requests.labels("unclaimed", "nobody", "failed").inc()
            return rejection(Rejected(error.status, str(error), code=f"teacher_{error.kind}"))
        self._metrics.requests.labels("unclaimed", "teacher", "passed_through").inc()
        if claimed is not None and response.status_code < 300:
            self._capture.put(claimed)
        return response

    def _passes(self, path: str) -> bool:
        """`NAME` is that path alone, `NAME/*` all that lies under it."""
        return path in self._endpoints or f"{path.partition('/')[0]}/*" in self._endpoints

    async def _passed(
        self, request: Request, path: str, body: bytes | AsyncIterator[bytes]
    ) -> Response:
        async with AsyncExitStack() as stack:
            opened = self._upstream.open(
                body,
                request.headers,
                path=f"/{path}",
                query=request.scope["query_string"].decode("latin-1"),
                method=request.method,
                passes=True,
            )
            reply = await stack.enter_async_context(opened)
            headers = {**reply.headers(), "x-flywheel-served-by": "teacher"}
            return Passed(reply, stack.pop_all(), headers)
        raise AssertionError("unreachable")

    async def _body(
        self, request: Request
    ) -> tuple[bytes | AsyncIterator[bytes], NativeRecord | None]:
        """As it is, but for a task's model, whose name the teacher may not know.

        With the record of a task's request, which no student of this endpoint answers.
        """
        declared = request.headers.get("content-length", "")
        small = declared.isdigit() and int(declared) <= LONGEST_LOOKED_AT
        is_json = request.headers.get("content-type", "").startswith("application/json")
        if self._allowance.names_models and request.method == "POST":
            body = await read_body(request, self._max_body_bytes)
        elif not small or not is_json:
            return request.stream(), None
        else:
            packed = await request.body()
            try:
                body = await read_body(request, LONGEST_LOOKED_AT)
            except Rejected:  # not ours to read: as it is
                return _once(packed), None
        _, envelope = read_request(body)
        task = self._claims.get(envelope.model) if envelope else None
        if envelope is None or task is None:
            return self._allowance.checked(body, envelope.model if envelope else ""), None
        self._metrics.unsupported.labels(task, "endpoint").inc()
        fields = read_object(body) or {}
        texts = [fields.get(name) for name in ("prompt", "input")]
        record = NativeRecord(
            schema=SCHEMA,
            event_id=uuid4().hex,
            task=task,
            model=envelope.model,
            occurred_at=datetime.now(UTC),
            messages=(Message("user", next((t for t in texts if isinstance(t, str)), "")),),
            past="endpoint",
            user=user_name(fields.get("user")),
        )
        model = self._upstream.model
        return (replace_fields(body, {"model": model}) if model else body), record


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _plain(path: str) -> str:
    """Without empty and trailing slashes. Raises `Rejected` where it is more than names."""
    plain = re.sub(r"/+", "/", path).strip("/")
    if not _PLAIN_PATH.fullmatch(plain) or {".", ".."} & {*plain.split("/")}:
        raise Rejected(404, f"there is no such path; there is {KNOWN}", code="not_found")
    return plain


class Passed(StreamingResponse):
    """What the teacher sends, as it comes. Its connection is closed whoever leaves, and when."""

    def __init__(self, reply: Reply, stack: AsyncExitStack, headers: Mapping[str, str]) -> None:
        super().__init__(reply.stream(), reply.status, headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the generator, which is perhaps never begun.
        async with self._stack:
            await super().__call__(scope, receive, send)
