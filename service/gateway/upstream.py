"""The teacher as the gateway calls it: one HTTP client, our key, no redirects.

The app's own client tries again; a second layer here would multiply its tries. Once more is tried
only what the teacher cannot have begun: nothing of it was sent, or it only reads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from io import BytesIO
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from starlette.datastructures import Headers
from yarl import URL

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
LONGEST_AT_ONCE = 1 << 18  # bytes of a body
LONGEST_HEADER = 1 << 16  # bytes, of the teacher's
# Servers close connections that nobody uses, gunicorn's after 2 s, uvicorn's and Node's after 5;
# a request into one that is just being closed is lost. So we close ours first. What that costs
# thin traffic is a handshake, which is little beside an answer.
KEEPALIVE_SECONDS = 1.5
NO_HEADERS = Headers()
CALLER: ContextVar[Headers] = ContextVar("caller", default=NO_HEADERS)  # whose turn this is

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
        self._headers = {"accept-encoding": "identity", "user-agent": "flywheel-gateway"}
        self._headers |= settings.http_headers
        self._query = settings.query
        self._base_url = str(URL(settings.base_url))
        self._proxy = proxy_for(self._base_url)
        self._session: aiohttp.ClientSession | None = None  # made in the loop that uses it

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

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
        headers = {name: _readable(app[name]) for name in names if name in app}
        caller = CALLER.get()
        headers |= {name: _readable(caller[name]) for name in TRACES if name in caller}
        headers.setdefault("content-type", "application/json")
        url = URL(self._base_url + path + self._merged(query), encoded=True)
        seconds = self._passing_seconds if passes else self._seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self._send(
                    method, url, body if method == "POST" else None, headers | self._headers
                )
        except TimeoutError as error:
            raise self._failed(
                "timeout", 504, f"the teacher did not answer within {seconds:g} s"
            ) from error
        except aiohttp.ClientError as error:
            raise self._failed(
                "connect", 502, f"the teacher cannot be reached: {type(error).__name__}"
            ) from error
        try:
            self._check(response.status)
            yield Reply(response, seconds, self._failed)
        finally:
            response.close()  # what was read whole has given its connection back before

    async def _send(
        self,
        method: str,
        url: URL,
        body: bytes | AsyncIterator[bytes] | None,
        headers: Mapping[str, str],
    ) -> aiohttp.ClientResponse:
        session = self._session = self._session or self._new_session()

        async def send() -> aiohttp.ClientResponse:
            # In pieces, so that others have their turn.
            sent: BytesIO | bytes | AsyncIterator[bytes] | None = body
            if isinstance(body, bytes) and len(body) > LONGEST_AT_ONCE:
                sent = BytesIO(body)
            return await session.request(
                method, url, data=sent, headers=headers, proxy=self._proxy, allow_redirects=False
            )

        try:
            return await send()  # a GET whose connection breaks off is tried again in there
        except aiohttp.ClientConnectorError:
            return await send()

    def _new_session(self) -> aiohttp.ClientSession:
        # Whom to trust is asked of the system, as the learner does.
        context = httpx2.create_ssl_context() if self._base_url.startswith("https") else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=context
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=CONNECT_SECONDS, sock_read=self._passing_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
        )

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
        response: aiohttp.ClientResponse,
        seconds: float,
        failed: Callable[[UpstreamProblem, int, str], UpstreamError],
    ) -> None:
        self.status = response.status
        self.ok = response.status == 200
        self.streams = response.headers.get("content-type", "").startswith("text/event-stream")
        self._response = response
        self._seconds = seconds
        self._failed = failed

    def headers(self) -> Mapping[str, str]:
        """What of the teacher's headers the app gets, each byte as one character."""
        found = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in self._response.raw_headers
        }
        return {
            name: value
            for name, value in found.items()
            if name in RESPONSE_HEADERS or name.startswith(RESPONSE_PREFIX)
        }

    async def read(self) -> bytes:
        """The whole body, within the time for a whole call."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                async for part in self._response.content.iter_any():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_REPLY_BYTES:
                        raise self._failed("broken", 502, "the teacher's answer is too large")
        except TimeoutError as error:
            raise self._failed("timeout", 504, "the teacher's answer stopped coming") from error
        except aiohttp.ClientError as error:
            raise self._failed("broken", 502, "the teacher's answer broke off") from error
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body piece by piece, as it comes."""
        try:
            async for part in self._response.content.iter_any():
                yield part
        except TimeoutError as error:
            raise self._failed("timeout", 504, "the teacher's answer stopped coming") from error
        except aiohttp.ClientError as error:
            raise self._failed("broken", 502, "the teacher's answer broke off") from error


def proxy_for(base_url: str) -> str | None:
    """What the environment names for this teacher; a proxy is for the world outside this host."""
    scheme, host = urlsplit(base_url).scheme, urlsplit(base_url).hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    named = getproxies()
    found = named.get(scheme) or named.get("all")
    return found if not found or "://" in found else f"http://{found}"


def _readable(value: str) -> str:
    """A header's value as text; what is no UTF-8 in it is replaced."""
    return value.encode("latin-1").decode("utf-8", "replace")
