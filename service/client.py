"""The command line's way to the learner: its operator API over HTTP."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pipelines.errors import ExitCode, FlywheelError, NotRunning
from storage.folder import DataFolder

TIMEOUT_SECONDS = 30.0


class Answered(FlywheelError):
    """The learner answered with an error; it says itself how the program should end."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LearnerClient:
    """Calls one learner as one operator."""

    def __init__(self, url: str, token: str, operator: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "X-Flywheel-Operator": quote(operator),
        }
        # No proxy and no redirect: the token goes to the learner and nowhere else.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def get(self, *path: str, **query: object) -> Any:
        """Read. `path` parts are quoted; query values of None are left out."""
        chosen = {key: value for key, value in query.items() if value is not None}
        return self._call("GET", path, query=f"?{urlencode(chosen)}" if chosen else "")

    def text(self, *path: str) -> str:
        """Read what is not JSON."""
        return str(self._call("GET", path, parse=bytes.decode))

    def post(
        self,
        *path: str,
        body: Mapping[str, object] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Any:
        """Do."""
        content = json.dumps(dict(body or {})).encode()
        return self._call("POST", path, content=content, timeout_seconds=timeout_seconds)

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: str = "",
        content: bytes | None = None,
        parse: Callable[[bytes], Any] = json.loads,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Any:
        where = "/".join(quote(part, safe="") for part in path)
        url = f"{self.url}/api/{where}{query}"
        request = urllib.request.Request(url, data=content, headers=self._headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                return parse(answer.read())
        except urllib.error.HTTPError as error:
            raise _explain(error, self.url) from None
        except (OSError, ValueError) as error:
            raise NotRunning(
                f"no learner answers at {self.url} ({_reason(error)}). Start one with "
                "`flywheel run` (or `flywheel learner`), and give the same --config and "
                "--data-dir here as there"
            ) from None


def find_learner(data_dir: Path, configured_url: str) -> str:
    """Where the learner of this data folder listens: what it noted itself, else the settings."""
    try:
        noted = json.loads(DataFolder(data_dir).note("learner").read_text())
        port, pid = int(noted["port"]), int(noted["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return configured_url
    return f"http://127.0.0.1:{port}" if _lives(pid) else configured_url


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _explain(error: urllib.error.HTTPError, url: str) -> FlywheelError:
    try:
        found = json.loads(error.read())["error"]
        return Answered(str(found["message"]), ExitCode(int(found["exit_code"])))
    except (ValueError, KeyError, TypeError):
        return NotRunning(f"something that is not a learner answers at {url} ({error.code})")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
