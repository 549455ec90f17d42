"""The door of the operator port: every request passes here before anything else looks at it."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.errors import ExitCode
from service.console.auth import Sessions, SlowFailures, is_known_host, is_same_origin

# Probes and scrapers know no token, and come by address: there is no prompt text here.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
GATEWAY_PREFIX = "/gateway/"  # those routes want the internal key themselves
LOGIN_PATHS = frozenset({"/login"})
STATIC_PREFIX = "/static/"
MAX_BODY_BYTES = 65_536

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # `no-referrer` would make browsers hide the Origin
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Guard:
    """Checks host, origin, size and identity, and sets the headers of every answer."""

    app: ASGIApp
    sessions: Sessions
    hosts: frozenset[str]
    failures: SlowFailures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith(GATEWAY_PREFIX):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        refusal = None if scope["path"] in OPEN_PATHS else await self._refuse(request)
        handler = self.app if refusal is None else refusal
        await handler(scope, _limited(receive), _with_headers(send))

    async def _refuse(self, request: Request) -> Response | None:
        """What to answer instead of serving the request, or None. Notes who asks."""
        path = request.url.path
        if not is_known_host(request, self.hosts):
            return error_response(
                421,
                "the console is not known under this host name; add it to learner.allowed_hosts",
            )
        identity = self.sessions.identify(request)
        open_to_all = path in LOGIN_PATHS or path.startswith(STATIC_PREFIX)
        if identity is None and not open_to_all:
            return await self._unknown(request)
        if not is_same_origin(request, identity):
            return error_response(403, "the request comes from another site")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return error_response(413, f"at most {MAX_BODY_BYTES:,} bytes are read")
        if identity is not None and not open_to_all:
            request.state.operator = identity.operator
        return None

    async def _unknown(self, request: Request) -> Response:
        if "authorization" in request.headers and not await self.failures.wait():
            return error_response(429, "too many wrong tokens; wait a moment")
        if request.url.path.startswith("/api/"):
            answer = error_response(
                401,
                "the operator token is missing or wrong; it lies in the data folder, in secrets/",
            )
            answer.headers["www-authenticate"] = "Bearer"
            return answer
        if request.method == "GET":
            return RedirectResponse(f"/login?next={quote(request.url.path)}", status_code=303)
        return RedirectResponse("/login", status_code=303)


def error_response(
    status: int, message: str, exit_code: ExitCode = ExitCode.REFUSED
) -> JSONResponse:
    """An error as every API call answers it; the command line ends with `exit_code`."""
    content: dict[str, Any] = {"error": {"message": message, "exit_code": int(exit_code)}}
    return JSONResponse(content, status_code=status)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def _limited(receive: Receive) -> Receive:
    """Cut a body that is longer than it may be, also one that did not say its length."""
    seen = 0

    async def receive_limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                return {"type": "http.disconnect"}
        return message

    return receive_limited
