"""Who may use the console: the token, one-time codes, sessions, and where requests come from."""

import asyncio
import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from time import time
from urllib.parse import unquote, urlsplit

from starlette.requests import Request

from service.settings import Settings

COOKIE = "flywheel_session"
SESSION_SECONDS = 12 * 3600
CODE_SECONDS = 120
MAX_CODES = 100
MAX_NAME = 60
NOBODY = "operator"  # who gave no name
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_WAITING_FAILURES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks, and whether a browser keeps the proof."""

    operator: str
    by_cookie: bool


class Sessions:
    """Proofs that are made from the token, so a new token ends every session."""

    def __init__(self, token: str, clock: Callable[[], float] = time) -> None:
        self._token = token.encode()
        self._key = hmac.new(self._token, b"flywheel-console-session", sha256).digest()
        self._clock = clock
        self._codes: dict[bytes, tuple[str, float]] = {}
        self._lock = Lock()

    def is_token(self, candidate: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(candidate.encode(), self._token)

    def make_code(self, operator: str) -> str:
        """A code that logs in once, within two minutes."""
        code = secrets.token_urlsafe(24)
        with self._lock:
            now = self._clock()
            self._codes = {key: value for key, value in self._codes.items() if value[1] > now}
            while len(self._codes) >= MAX_CODES:
                del self._codes[next(iter(self._codes))]
            self._codes[_hash(code)] = (operator, now + CODE_SECONDS)
        return code

    def take_code(self, code: str) -> str | None:
        """The operator that the code was made for; the code is spent."""
        with self._lock:
            found = self._codes.pop(_hash(code), None)
        return found[0] if found and found[1] > self._clock() else None

    def make_cookie(self, operator: str) -> str:
        """A signed session. It holds no secret, and the token cannot be read from it."""
        content = {"operator": operator, "until": int(self._clock()) + SESSION_SECONDS}
        body = urlsafe_b64encode(json.dumps(content).encode()).decode()
        return f"{body}.{self._sign(body)}"

    def read_cookie(self, cookie: str) -> str | None:
        """The operator of a valid session."""
        body, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            return None
        try:
            content = json.loads(urlsafe_b64decode(body))
            operator, until = str(content["operator"]), int(content["until"])
        except (ValueError, KeyError, TypeError):
            return None
        return operator if until > self._clock() else None

    def identify(self, request: Request) -> Identity | None:
        """From the bearer token, else from the session cookie."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if not self.is_token(given.strip()):
                return None
            name = unquote(request.headers.get("x-flywheel-operator", ""))
            return Identity(operator=clean_name(name), by_cookie=False)
        operator = self.read_cookie(request.cookies.get(COOKIE, ""))
        return None if operator is None else Identity(operator=operator, by_cookie=True)

    def _sign(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), sha256).hexdigest()


class SlowFailures:
    """Wrong proofs are answered one after the other, each after a pause.

    Right ones never wait. When too many wait already, the rest is turned away at once.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def wait(self) -> bool:
        """Wait for this failure's turn; False when it is turned away."""
        if self._waiting >= MAX_WAITING_FAILURES:
            return False
        self._waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(self._seconds)
        finally:
            self._waiting -= 1
        return True


def allowed_hosts(settings: Settings) -> frozenset[str]:
    """The names under which the console may be reached: anything else is DNS rebinding."""
    learner = settings.learner
    names = {*LOOPBACK_NAMES, *learner.allowed_hosts}
    if learner.host not in ("0.0.0.0", "::", ""):
        names.add(learner.host)
    if learner.public_url:
        names.add(urlsplit(learner.public_url).hostname or "")
    return frozenset(name.lower().strip("[]") for name in names if name)


def is_known_host(request: Request, hosts: frozenset[str]) -> bool:
    return _host_name(request.headers.get("host", "")) in hosts


def is_same_origin(request: Request, identity: Identity | None) -> bool:
    """Whether an unsafe request comes from our own page, or from no page at all.

    Browsers send `Origin` with every POST and, to trustworthy addresses, `Sec-Fetch-Site`; a
    page cannot forge either. A program with the bearer token sends neither.
    """
    if request.method in SAFE_METHODS:
        return True
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is not None:
        return urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
    return site is not None or (identity is not None and not identity.by_cookie)


def clean_name(name: str) -> str:
    """An operator's name as it is recorded: one short printable line."""
    clean = " ".join("".join(c for c in name if c.isprintable()).split())[:MAX_NAME]
    return clean or NOBODY


def safe_path(path: str) -> str:
    """Where to go after logging in: a path of ours, never another site."""
    ours = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if ours and path.isprintable() else "/"


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _hash(code: str) -> bytes:
    return sha256(code.encode()).digest()
