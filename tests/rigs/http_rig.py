"""What the tests of the gateway's HTTP share: a teacher that answers every path."""

from pathlib import Path
from typing import Any

from gateway_rig import (
    RunningGateway,
    Teacher,
    settings_for,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ASKED: dict[str, Any] = {
    "model": "desk",
    "messages": [{"role": "user", "content": "where is my parcel"}],
}
OTHER = {**ASKED, "model": "another"}


class Account(Teacher):
    """A teacher that answers every path, and remembers what it was asked."""

    def app(self) -> Starlette:
        self.urls: list[str] = []
        routes = [
            Route("/v1/chat/completions", self._noted, methods=["POST"]),
            Route("/v1/{path:path}", self._any, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes)

    async def _noted(self, request: Request) -> Response:
        self.urls.append(str(request.url))
        return await self._chat(request)

    async def _any(self, request: Request) -> Response:
        self.urls.append(str(request.url))
        self.requests.append((dict(request.headers), await request.body()))
        vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        return JSONResponse({"object": "list", "data": [vector], "model": "m",
                             "usage": {"prompt_tokens": 1, "total_tokens": 1}},
                            headers=self.headers)  # fmt: skip

    def last(self) -> tuple[dict[str, str], bytes]:
        return self.requests[-1]


def other_gateway(folder: Path, account: Account, **gateway: Any) -> RunningGateway:
    return RunningGateway(settings_for(folder, account, gateway=gateway))
