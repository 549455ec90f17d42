"""What the learner offers to gateways: what is live, artifacts by hash, leases, their status."""

import hmac
import re
from collections.abc import Callable, Mapping
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from service.keys import Keys
from service.learner.leases import LeaseBook
from service.planes import LeaseRequest
from storage.artifacts import MANIFEST, Artifacts, Kind

# What a gateway needs to serve. Datasets hold people's prompts and stay here.
SERVED_KINDS: Mapping[str, Kind] = {
    "encoder": "encoder",
    "chat_model": "chat_model",
    "student": "student",
    "report": "report",
}
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_BODY_BYTES = 65_536

Endpoint = Callable[[Request], Any]


def gateway_routes(
    *,
    keys: Keys,
    artifacts: Artifacts,
    live_path: Path,
    leases: LeaseBook,
    on_status: Callable[[Mapping[str, Any]], None],
) -> list[Route]:
    """The routes under /gateway/. Every one wants the internal key as bearer token."""

    async def live(request: Request) -> Response:
        try:
            content = await run_in_threadpool(live_path.read_bytes)
        except FileNotFoundError:
            return Response(status_code=204)
        tag = f'"{sha256(content).hexdigest()}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(content, headers={"etag": tag}, media_type="application/json")

    async def artifact(request: Request) -> Response:
        path = _artifact_file(artifacts, **request.path_params)
        if path is None or not await run_in_threadpool(path.is_file):
            return Response(status_code=404)
        return FileResponse(path, media_type="application/octet-stream")

    async def lease(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await _body(request), type=LeaseRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Response(status_code=422)
        if wanted.spent_calls < 0 or wanted.spent_money < 0:
            return Response(status_code=422)
        reply = await run_in_threadpool(leases.renew, wanted)
        return Response(msgspec.json.encode(reply), media_type="application/json")

    async def status(request: Request) -> Response:
        try:
            told = msgspec.json.decode(await _body(request), type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Response(status_code=422)
        await run_in_threadpool(on_status, told)
        return Response(status_code=204)

    guarded = _guard(keys)
    return [
        Route("/gateway/live", guarded(live), methods=["GET"]),
        Route("/gateway/artifacts/{kind}/{digest}/{name:path}", guarded(artifact), methods=["GET"]),
        Route("/gateway/lease", guarded(lease), methods=["POST"]),
        Route("/gateway/status", guarded(status), methods=["POST"]),
    ]


def _guard(keys: Keys) -> Callable[[Endpoint], Endpoint]:
    expected = f"Bearer {keys.internal}".encode()

    def guard(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def guarded(request: Request) -> Response:
            presented = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(presented, expected):
                return Response(status_code=401)
            response: Response = await endpoint(request)
            return response

        return guarded

    return guard


def _artifact_file(artifacts: Artifacts, kind: str, digest: str, name: str) -> Path | None:
    """The file that is meant, if it is one that a gateway may have."""
    served = SERVED_KINDS.get(kind)
    if served is None or not DIGEST.fullmatch(digest):
        return None
    folder = artifacts.path(served, digest)
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    return path if inside and (folder / MANIFEST).is_file() else None


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return b""
        parts.append(part)
    return b"".join(parts)
