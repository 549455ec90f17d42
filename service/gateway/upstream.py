"""The teacher as the gateway calls it: one HTTP client, our key, no redirects.

The app's own client tries again; a second layer here would multiply its tries. Once more is tried
only what the teacher cannot have begun: nothing of it was sent, or it only reads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Literal
from urllib.parse import parse_qsl, urlencode

import httpx2
from starlette.datastructures import Headers

from pipelines.errors import FlywheelError
from service.metrics.gateway import GatewayMetrics
from service.sections import TeacherSettings, is_loopback

# What ties a call to its app: travels also where the teacher is asked in the student's place.
TRACES = ("traceparent", "tracestate", "x-request-id", "x-client-request-id")
# What travels on, either way. Everything else stays here, above all the app's own key.
REQUEST_HEADERS = (
    "content-type",
    "accept",
    "openai-beta",
    "idempotency-key",
    "openai-organization",
    "openai-project",
)
# These say how a body lies on the wire, and are true only for one that is handed on unread.
STREAM_HEADERS = ("content-encoding", "content-length")
# What some servers take for a key in an address: an app's own stays here too.
KEYS_IN_QUERIES = frozenset(
    {"key", "api-key", "api_key", "apikey", "subscription-key", "access_token", "code", "sig"}
)
RESPONSE_HEADERS = (
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-request-id",
    "x-should-retry",
    "openai-processing-ms",
)
RESPONSE_PREFIX = "x-ratelimit-"
MAX_REPLY_BYTES = 16 << 20
CONNECT_SECONDS = 5.0
# Servers close connections that nobody uses, gunicorn's after 2 s, uvicorn's and Node's after 5;
# a request into one that is just being closed is lost. So we close ours first. What that costs
# thin traffic is a handshake, which is little beside an answer.
KEEPALIVE_SECONDS = 1.5
NO_HEADERS = Headers()
CALLER: ContextVar[Headers] = ContextVar("caller", default=NO_HEADERS)  # whose turn this is
ONLY_READ = ("GET", "HEAD")

UpstreamProblem = Literal["connect", "timeout", "redirect", "refused", "rate_limited", "broken"]


class UpstreamError(FlywheelError):
    """The teacher gave no answer. `status` is what the app is told."""

    def __init__(self, kind: UpstreamProblem, status: int, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class Upstream:
    """Calls the teacher of the settings.

    `passing`: the time for what passes through, which is the app's affair; escalations have the
    teacher's own.
    """

    def __init__(
        self, settings: TeacherSettings, metrics: GatewayMetrics, passing: timedelta
    ) -> None:
        self.configured = bool(settings.base_url)
        self.model = settings.model
        self._metrics = metrics
        self._seconds = settings.timeout.total_seconds()
        self._passing_seconds = passing.total_seconds()
        # Streams are read as they come, so they must not be compressed.
        own = {"accept-encoding": "identity", "user-agent": "flywheel-gateway"}
        own |= settings.http_headers
        self._headers = {name.encode(): value.encode() for name, value in own.items()}
        self._query = settings.query
        self._base_url = settings.base_url
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(self._passing_seconds, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(
                max_connections=512,
                max_keepalive_connections=64,
                keepalive_expiry=KEEPALIVE_SECONDS,
            ),
            follow_redirects=False,
            # A proxy of the environment is for the world outside this machine.
            trust_env=self.configured and not is_loopback(httpx2.URL(self._base_url).host),
        )

    async def close(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def open(
        self,
        body: bytes | AsyncIterator[bytes],
        app: Headers = NO_HEADERS,
        *,
        path: str = "/chat/completions",
        query: str = "",
        method: str = "POST",
        passes: bool = False,
    ) -> AsyncIterator["Reply"]:
        """Send a request and hold its reply open. Raises `UpstreamError` if none comes.

        `passes`: it is the app's own, and may take as long as those do.

        Replies of any status but a redirect are handed on: a refusal is the app's to read.
        """
        as_it_is = method == "POST" and not isinstance(body, bytes)
        names = REQUEST_HEADERS + STREAM_HEADERS if as_it_is else REQUEST_HEADERS
        # As bytes: an app may write there what is no ASCII.
        told = {name: app[name] for name in names if name in app}
        told |= {name: value for name, value in CALLER.get().items() if name in TRACES}
        headers = {name.encode(): value.encode("latin-1") for name, value in told.items()}
        headers.setdefault(b"content-type", b"application/json")
        request = self._client.build_request(
            method,
            self._base_url + path + self._merged(query),
            content=body if method == "POST" else None,
            headers=headers | self._headers,
        )
        seconds = self._passing_seconds if passes else self._seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self._send(request)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise self._failed(
                "timeout", 504, f"the teacher did not answer within {seconds:g} s"
            ) from error
        except httpx2.HTTPError as error:
            raise self._failed(
                "connect", 502, f"the teacher cannot be reached: {type(error).__name__}"
            ) from error
        try:
            self._check(response.status_code)
            yield Reply(response, seconds, self._failed)
        finally:
            await response.aclose()

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._client.send(request, stream=True)
        except httpx2.TimeoutException:
            raise
        except httpx2.TransportError as error:
            if request.method not in ONLY_READ and not isinstance(error, httpx2.ConnectError):
                raise
        return await self._client.send(request, stream=True)

    def _merged(self, query: str) -> str:
        """What stands behind the path: ours, and what else the app asks."""
        mine = {name.lower() for name in self._query} | KEYS_IN_QUERIES
        theirs = parse_qsl(query, keep_blank_values=True)
        asked = [*self._query.items(), *((n, v) for n, v in theirs if n.lower() not in mine)]
        return f"?{urlencode(asked)}" if asked else ""

    def _check(self, status: int) -> None:
        if status < 300:
            return
        if status < 400:
            raise self._failed(
                "redirect",
                502,
                "the teacher redirects, which is not followed; see teacher.base_url",
            )
        if status in (401, 403):
            # Handed on, the app would take it for a word about its own key.
            raise self._failed(
                "refused", 502, f"the teacher refuses our key ({status}); see teacher.api_key"
            )
        kind: UpstreamProblem = (
            "rate_limited" if status == 429 else "refused" if status < 500 else "broken"
        )
        self._metrics.upstream_errors.labels(kind).inc()

    def _failed(self, kind: UpstreamProblem, status: int, message: str) -> UpstreamError:
        self._metrics.upstream_errors.labels(kind).inc()
        return UpstreamError(kind, status, message)


class Reply:
    """A reply whose body is still to come."""

    def __init__(
        self,
        response: httpx2.Response,
        seconds: float,
        failed: Callable[[UpstreamProblem, int, str], UpstreamError],
    ) -> None:
        self.status = response.status_code
        self.ok = response.status_code == 200
        self.streams = response.headers.get("content-type", "").startswith("text/event-stream")
        self._response = response
        self._seconds = seconds
        self._failed = failed

    def headers(self) -> Mapping[str, str]:
        """What of the teacher's headers the app gets."""
        return {
            name: value
            for name, value in self._response.headers.items()
            if name in RESPONSE_HEADERS or name.startswith(RESPONSE_PREFIX)
        }

    async def read(self) -> bytes:
        """The whole body, within the time for a whole call."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                async for part in self._response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_REPLY_BYTES:
                        raise self._failed("broken", 502, "the teacher's answer is too large")
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise self._failed("timeout", 504, "the teacher's answer stopped coming") from error
        except httpx2.HTTPError as error:
            raise self._failed("broken", 502, "the teacher's answer broke off") from error
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body piece by piece, as it comes."""
        try:
            async for part in self._response.aiter_bytes():
                yield part
        except httpx2.TimeoutException as error:
            raise self._failed("timeout", 504, "the teacher's answer stopped coming") from error
        except httpx2.HTTPError as error:
            raise self._failed("broken", 502, "the teacher's answer broke off") from error
