"""Who may use the inference port: apps by their keys, where keys are set."""

import hmac
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from service.gateway.turn import Rejected, rejection
from service.metrics.gateway import GatewayMetrics

Endpoint = Callable[[Request], Awaitable[Response]]

REASONS = {401: "key", 403: "origin", 413: "too_large"}


class Door:
    """Lets requests in, and turns those away that have no key or are no requests."""

    def __init__(self, keys: Sequence[str], metrics: GatewayMetrics) -> None:
        self._keys = [key.encode() for key in keys]
        self._metrics = metrics

    def guard(self, endpoint: Endpoint, *, also: Sequence[str] = ()) -> Endpoint:
        """The endpoint behind the door; `also` are further keys that open it."""
        keys = [*self._keys, *(key.encode() for key in also)] if self._keys else []

        async def guarded(request: Request) -> Response:
            try:
                _refuse_other_pages(request)
                if keys and not _is_known(request, keys):
                    raise Rejected(
                        401,
                        "this gateway wants one of the keys in its gateway.keys as bearer token",
                        code="invalid_api_key",
                        kind="authentication_error",
                    )
                return await endpoint(request)
            except Rejected as rejected:
                reason = REASONS.get(rejected.status, "malformed")
                self._metrics.rejected.labels(reason).inc()
                return rejection(rejected)

        return guarded


def _refuse_other_pages(request: Request) -> None:
    """A browser says whose page asks. Apps are no pages, and our key is behind this port."""
    site = request.headers.get("sec-fetch-site", "none")
    if "origin" in request.headers or site not in ("none", "same-origin"):
        raise Rejected(
            403,
            "a web page asks; this port is for apps, and pages ask their own server",
            code="other_origin",
            kind="permission_error",
        )


def _is_known(request: Request, keys: Sequence[bytes]) -> bool:
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    token = presented.strip().encode()
    # All are compared, so that the time tells nothing.
    return sum(hmac.compare_digest(token, key) for key in keys) > 0
