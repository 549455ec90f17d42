"""One chat request on its way through the gateway: how it is read, and how it is turned away."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from pipelines.chat_request import Attachment, ChatRequest, Past
from pipelines.records.common import user_name
from pipelines.types import Message, Task
from service.gateway.azure import with_model
from service.gateway.dialects import Dialect
from service.gateway.packing import Unreadable, unpacked
from service.gateway.wire import error_body

ATTRIBUTE_PREFIX = b"x-flywheel-attribute-"
# The gateway's own attributes, which an app cannot set.
OWN_ATTRIBUTES = frozenset({"unsure", "escalation", "feedback_on"})
ATTRIBUTE_NAME = re.compile(r"[a-z0-9_-]{1,40}")
MOST_ATTRIBUTES = 16
KNOWN = "/v1/chat/completions, /v1/responses, /v1/models, /v1/feedback"
# How the paths end that apps ask for.
ENDPOINT = re.compile(
    r"/+(chat/completions|responses|completions|embeddings|moderations|models|feedback"
    r"|(?:audio|images)/[a-z]+)$"
)
LONGEST_ATTRIBUTE = 200


class Rejected(Exception):
    """A request that is turned away, with what its sender is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")


def meant(path: str) -> str:
    """A word about the path that was probably meant, where a base_url is a little wrong."""
    found = ENDPOINT.search(path.rstrip("/"))
    if found is None or f"/v1/{found[1]}" == path:
        return ""
    return f". Is it /v1/{found[1]} that is meant? A base_url ends with /v1, once"


def does_not_pass(method: str, path: str) -> Rejected:
    """For an endpoint of the teacher that the settings do not list."""
    problem = (
        f"{method} /v1/{path.strip('/')} does not pass this gateway; gateway.pass_through lists "
        f"what does, beside {KNOWN}{meant(f'/v1/{path}')}"
    )
    return Rejected(404, problem, code="not_found")


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """What is known about a request from its arrival on."""

    body: bytes
    model: str
    streams: bool
    task: Task | None
    request: ChatRequest | None  # None: malformed, the teacher will say so
    messages: Sequence[Message]  # as text
    attributes: dict[str, str]
    dialect: Dialect
    past: Past | None = None  # why no student may answer it
    attachments: tuple[Attachment, ...] = ()
    event_id: str = field(default_factory=lambda: uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    occurred_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def user(self) -> str | None:
        if self.request is None:
            return None
        return user_name(self.request.user) or user_name(self.request.safety_identifier)

    @property
    def task_name(self) -> str:
        return self.task.name if self.task else "unclaimed"


async def read_body(request: Request, most: int) -> bytes:
    """The body, unpacked, or `Rejected` as soon as it is known to be too large (bytes)."""
    refusal = Rejected(413, f"the request is larger than {most} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise refusal
    parts, size = [], 0
    coding = request.headers.get("content-encoding", "")
    try:
        async for part in unpacked(request.stream(), coding):
            size += len(part)
            if size > most:
                raise refusal
            parts.append(part)
    except Unreadable as problem:
        raise Rejected(problem.status, str(problem), code=problem.code) from None
    return with_model(b"".join(parts), request.scope)


def read_attributes(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """What the app says about a request in headers `x-flywheel-attribute-NAME`."""
    found: dict[str, str] = {}
    for raw, value in headers:
        if not raw.startswith(ATTRIBUTE_PREFIX) or len(found) == MOST_ATTRIBUTES:
            continue
        name = raw[len(ATTRIBUTE_PREFIX) :].decode("latin-1")
        if ATTRIBUTE_NAME.fullmatch(name) and name not in OWN_ATTRIBUTES:
            found[name] = value.decode("utf-8", "replace")[:LONGEST_ATTRIBUTE]
    return found


def json_response(
    content: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON that is encoded already."""
    return Response(content, status, headers, media_type="application/json")


def rejection(rejected: Rejected, headers: Mapping[str, str] | None = None) -> Response:
    """The error in OpenAI's form."""
    content = error_body(rejected.message, type=rejected.kind, code=rejected.code)
    everything = {**rejected.headers, **(headers or {})}
    return json_response(content, status=rejected.status, headers=everything)
