"""What stands before all endpoints: other dialects' paths, ids for answers, pages that may ask."""

from collections.abc import Sequence
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.gateway.azure import as_openai
from service.gateway.turn import Rejected, rejection
from service.gateway.upstream import CALLER

REQUEST_ID = "x-request-id"
EVENT_ID = "x-flywheel-event-id"
NO_WEBSOCKETS = Rejected(
    501,
    "this gateway speaks no WebSockets: the Realtime API and responses over a socket are not for "
    "it; ask the teacher directly",
    code="websockets_unsupported",
)
# What of an answer's headers a page may read.
EXPOSED = (
    REQUEST_ID,
    EVENT_ID,
    "x-flywheel-served-by",
    "x-flywheel-version",
    "x-flywheel-confidence",
    "x-flywheel-unsure",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
)


class Front:
    """Every request passes here first, and every answer last, also one that went wrong."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = _with_cors(app, origins) if origins else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                _name(MutableHeaders(scope=message))
            await send(message)

        headers, app = Headers(scope=scope), self._app
        CALLER.set(headers)
        if headers.get("upgrade", "").lower() == "websocket":
            app = rejection(NO_WEBSOCKETS)
        await app(as_openai(scope), receive, answer)


def _name(headers: MutableHeaders) -> None:
    """The teacher's own id, else the event's, which feedback knows too, else a new one."""
    if REQUEST_ID not in headers:
        headers[REQUEST_ID] = headers.get(EVENT_ID) or uuid4().hex


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Tells browsers that pages of these origins may ask; the door lets the same ones in."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=EXPOSED,
    )
