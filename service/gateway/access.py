"""Who may use the inference port: apps by their keys, where keys are set, and no web pages.

Behind this port is our key. A browser sends a page's request to any address of this machine, and
without asking first if it looks like a form's; it says whose page asks, and under which name.
"""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from service.gateway.turn import Rejected, rejection
from service.metrics.gateway import GatewayMetrics
from service.sections import GatewaySettings, is_loopback

Endpoint = Callable[[Request], Awaitable[Response]]

REASONS = {
    "invalid_api_key": "key",
    "other_origin": "origin",
    "unknown_host": "host",
    "unsupported_media_type": "media_type",
    "unsupported_content_encoding": "media_type",
    "request_too_large": "too_large",
    "model_not_allowed": "model",
    "rate_limit_exceeded": "ceiling",
}
MULTIPART = "multipart/form-data"
# What a page may send to anybody without being asked for leave.
FORM_TYPES = ("text/plain", "application/x-www-form-urlencoded", MULTIPART)


class Door:
    """Lets requests in, and turns those away that have no key or are no requests."""

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._keys = [key.get_secret_value().encode() for key in settings.keys]
        self._any_host = not settings.hosts and not is_loopback(settings.host)
        self._hosts = {name.lower().strip("[]") for name in (settings.host, *settings.hosts)}
        self._origins = frozenset(settings.cors_origins)
        self._metrics = metrics

    def guard(
        self, endpoint: Endpoint, *, also: Sequence[str] = (), forms: bool = False
    ) -> Endpoint:
        """The endpoint behind the door.

        `also` are further keys that open it; with `forms` it takes more than JSON.
        """
        keys = [*self._keys, *(key.encode() for key in also)] if self._keys else []

        async def guarded(request: Request) -> Response:
            try:
                self._refuse_other_names(request)
                self._refuse_other_pages(request)
                if keys and not _is_known(request, keys):
                    raise Rejected(
                        401,
                        "this gateway wants one of the keys in its gateway.keys, as bearer token "
                        "or in the header api-key",
                        code="invalid_api_key",
                        kind="authentication_error",
                    )
                if not keys:
                    _refuse_forms(request, but=MULTIPART if forms else "")
                return await endpoint(request)
            except Rejected as rejected:
                reason = REASONS.get(rejected.code, "malformed")
                self._metrics.rejected.labels(reason).inc()
                return rejection(rejected)

        return guarded

    def _refuse_other_names(self, request: Request) -> None:
        """A page whose own name leads here (DNS rebinding) is of this origin, and says that name.

        Programs that say none are no browsers.
        """
        if self._any_host:
            return
        for said in request.headers.getlist("host"):
            name = _host_name(said)
            if name not in self._hosts and not is_loopback(name):
                raise Rejected(
                    421,
                    f"the gateway is not known as '{name[:100]}'; add it to gateway.hosts",
                    code="unknown_host",
                    kind="permission_error",
                )

    def _refuse_other_pages(self, request: Request) -> None:
        """A browser says whose page asks. Apps are no pages."""
        site, origin = request.headers.get("sec-fetch-site", "none"), request.headers.get("origin")
        if origin is not None and ("*" in self._origins or origin in self._origins):
            return
        if origin is not None or site not in ("none", "same-origin"):
            raise Rejected(
                403,
                "a web page asks; this port is for apps, and pages ask their own server, or are "
                "of an origin that gateway.cors_origins names",
                code="other_origin",
                kind="permission_error",
            )


def _refuse_forms(request: Request, but: str) -> None:
    """What only says that it is no JSON. Apps that say nothing are read as ever."""
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and said in FORM_TYPES and said != but:
        raise Rejected(
            415,
            f"this is sent as {said}, as a web page could; send it as application/json",
            code="unsupported_media_type",
        )


def _host_name(said: str) -> str:
    try:
        return (urlsplit(f"//{said.strip()}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_known(request: Request, keys: Sequence[bytes]) -> bool:
    """Whether one of the keys is there: as bearer token, or where Azure's clients put theirs."""
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    bearer = presented.strip() if scheme.lower() == "bearer" else ""
    tokens = [said.encode() for said in (bearer, request.headers.get("api-key", "").strip())]
    # All are compared, so that the time tells nothing.
    return sum(hmac.compare_digest(said, key) for said in tokens for key in keys) > 0
