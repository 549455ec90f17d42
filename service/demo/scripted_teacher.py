"""A teacher that follows a script, in its own process, behind an OpenAI-compatible endpoint.

It stands where a paid model would stand: slow, flaky and wrong as often as it is told to be.
"""

import argparse
import asyncio
import hmac
import json
import os
import socket
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Literal
from uuid import uuid4

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipelines.errors import ExitCode, FlywheelError, PortInUse
from service.demo.answers import AnswerKey, answer_to, demo_key, read_key
from service.demo.chat_wire import (
    HEADERS,
    Chat,
    count_tokens,
    error_reply,
    messages_hash,
    plain_reply,
    stream_reply,
)

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Behaviour(BaseModel):
    """How well the teacher behaves; may be changed while it runs (POST /control)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error_rate: float = Field(default=0.0, ge=0, le=1)
    nonsense_rate: float = Field(default=0.0, ge=0, le=1)
    latency_ms: float = Field(default=0.0, ge=0)
    rate_429: float = Field(default=0.0, ge=0, le=1)
    retry_after_s: float = Field(default=1.0, ge=0)
    rate_500: float = Field(default=0.0, ge=0, le=1)
    hang_rate: float = Field(default=0.0, ge=0, le=1)
    api_key: str | None = None
    seed: int = 0


class BillingLog:
    """The teacher's own record of what it charged, durable before the answer leaves."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def charge(self, line: dict[str, object]) -> None:
        with self._lock:
            self._file.write(json.dumps(line).encode() + b"\n")
            os.fsync(self._file.fileno())


class ScriptedTeacher:
    """The endpoint. A request is charged when it is accepted, whether or not it is answered."""

    def __init__(
        self,
        key: AnswerKey,
        behaviour: Behaviour,
        *,
        model: str = "scripted-teacher",
        prices: dict[str, float] | None = None,
        billing: BillingLog | None = None,
    ) -> None:
        self._key = key
        self._behaviour = behaviour
        self._model = model
        self._prices = prices or {}
        self._billing = billing
        self._dice = Random(behaviour.seed)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/healthz", self.health),
                Route("/control", self.control, methods=["POST"]),
            ]
        )

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "scripted": True}, headers=HEADERS)

    async def models(self, request: Request) -> Response:
        if refused := self._refuse_key(request):
            return refused
        entry = {"id": self._model, "object": "model", "created": 0, "owned_by": "scripted"}
        if self._prices:
            entry["metadata"] = self._prices
        return JSONResponse({"object": "list", "data": [entry]}, headers=HEADERS)

    async def control(self, request: Request) -> Response:
        """Change some of the behaviour; answer with all of it, the key left out."""
        if request.client is None or request.client.host not in LOOPBACK:
            return error_reply(403, "only this host may change the script", "permission_error")
        try:
            changes = json.loads(await request.body())
            self._behaviour = Behaviour.model_validate({**self._behaviour.model_dump(), **changes})
            if "seed" in changes:
                self._dice = Random(self._behaviour.seed)
        except (ValueError, TypeError) as error:
            return error_reply(400, f"not a behaviour: {error}", "invalid_request_error")
        return JSONResponse(self._behaviour.model_dump(exclude={"api_key"}), headers=HEADERS)

    async def chat(self, request: Request) -> Response:
        behaviour = self._behaviour
        if refused := self._refuse_key(request):
            return refused
        try:
            chat = Chat.model_validate_json(await request.body())
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            return error_reply(400, f"{where}: {problem['msg']}", "invalid_request_error")
        except ClientDisconnect:  # who asked was killed meanwhile, and hears nothing of this
            return Response(status_code=400)
        if trouble := self._trouble(behaviour):
            return trouble
        reply_id = f"chatcmpl-{uuid4().hex}"
        hangs = self._dice.random() < behaviour.hang_rate
        answer = self._answer(chat, behaviour)
        await self._charge(reply_id, chat, answer, "unanswered" if hangs else "answered")
        if hangs:
            return await _never(request)
        if behaviour.latency_ms:
            await asyncio.sleep(behaviour.latency_ms / 1000 * self._dice.uniform(0.5, 1.5))
        if chat.stream:
            pieces = stream_reply(reply_id, chat, answer)
            return StreamingResponse(pieces, media_type="text/event-stream", headers=HEADERS)
        return JSONResponse(plain_reply(reply_id, chat, answer), headers=HEADERS)

    def _refuse_key(self, request: Request) -> Response | None:
        expected = self._behaviour.api_key
        given = request.headers.get("authorization", "")
        if expected is None or hmac.compare_digest(given.encode(), f"Bearer {expected}".encode()):
            return None
        return error_reply(
            401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"
        )

    def _trouble(self, behaviour: Behaviour) -> Response | None:
        if self._dice.random() < behaviour.rate_429:
            reply = error_reply(
                429, "Rate limit reached. Please slow down.", "requests", "rate_limit_exceeded"
            )
            reply.headers["retry-after"] = f"{behaviour.retry_after_s:g}"
            return reply
        if self._dice.random() < behaviour.rate_500:
            return error_reply(500, "The server had an error.", "server_error")
        return None

    def _answer(self, chat: Chat, behaviour: Behaviour) -> str:
        return answer_to(
            chat.last_user_text,
            self._key,
            error_rate=behaviour.error_rate,
            nonsense_rate=behaviour.nonsense_rate,
            seed=behaviour.seed,
        )

    async def _charge(
        self,
        reply_id: str,
        chat: Chat,
        answer: str,
        status: Literal["answered", "unanswered"],
    ) -> None:
        if self._billing is None:
            return
        line = {
            "id": reply_id,
            "time": datetime.now(UTC).isoformat(),
            "messages_sha256": messages_hash(chat),
            "model": chat.model,
            "prompt_tokens": chat.prompt_tokens,
            "completion_tokens": count_tokens(answer) * chat.n,
            "status": status,
        }
        await asyncio.to_thread(self._billing.charge, line)


async def _never(request: Request) -> Response:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
    return Response(status_code=499)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripted_teacher", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--model", default="scripted-teacher")
    parser.add_argument("--answers", type=Path, help="CSV or JSONL; without it, the demo's traffic")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--billing-log", type=Path)
    parser.add_argument("--price-per-million-in", type=float)
    parser.add_argument("--price-per-million-out", type=float)
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end with the process that started us"
    )
    for name, field in Behaviour.model_fields.items():
        kind = {"api_key": str, "seed": int}.get(name, float)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=field.default)
    return parser.parse_args(arguments)


def build(options: argparse.Namespace) -> ScriptedTeacher:
    """The teacher that a command line describes."""
    key = demo_key()
    if options.answers:
        key = read_key(
            options.answers, text_column=options.text_column, label_column=options.label_column
        )
    prices = {
        name: price
        for name in ("price_per_million_in", "price_per_million_out")
        if (price := getattr(options, name)) is not None
    }
    return ScriptedTeacher(
        key,
        Behaviour(**{name: getattr(options, name) for name in Behaviour.model_fields}),
        model=options.model,
        prices=prices,
        billing=BillingLog(options.billing_log) if options.billing_log else None,
    )


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortInUse(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return listener


def _stop_with_stdin(server: uvicorn.Server) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        app = build(options).app()
        listener = listen(options.host, options.port)
    except ValidationError as error:
        print(f"scripted teacher: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except FlywheelError as error:
        print(f"scripted teacher: {error}", file=sys.stderr)
        return error.exit_code
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    )
    if options.until_stdin_closes:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    # The socket listens already: a client that connects now waits until the server takes over.
    port = listener.getsockname()[1]
    print(json.dumps({"port": port, "scripted": True}), flush=True)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main())
