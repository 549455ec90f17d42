"""The gateway's side of the learner's routes: leases, what is live, artifacts, status."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path, PurePosixPath
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import httpx2
import msgspec

from pipelines.errors import ArtifactDamaged, NotRunning
from service.planes import GatewayReport, LeaseReply, LeaseRequest
from service.sections import is_loopback
from storage.artifacts import MANIFEST, Artifacts, Kind

MAX_MANIFEST_BYTES = 4 << 20


class LearnerClient:
    """A blocking client, safe to use from several threads. Raises `NotRunning` for no answer."""

    def __init__(self, address: Callable[[], str], token: str) -> None:
        self._address = address
        self._client = httpx2.Client(
            headers={"authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(5.0, connect=2.0),
            follow_redirects=False,
            trust_env=not is_loopback(httpx2.URL(address()).host),
        )
        self._etag = ""

    def ask_lease(self, request: LeaseRequest) -> LeaseReply:
        response = self._call("POST", "/gateway/lease", content=msgspec.json.encode(request))
        try:
            return msgspec.json.decode(response.content, type=LeaseReply)
        except msgspec.MsgspecError as error:
            raise NotRunning(f"the learner's lease cannot be read: {error}") from error

    def report(self, report: GatewayReport) -> None:
        self._call("POST", "/gateway/status", content=msgspec.json.encode(report))

    def live(self) -> bytes | None:
        """What is published now, or None when it is what the last call returned."""
        headers = {"if-none-match": self._etag} if self._etag else {}
        response = self._call("GET", "/gateway/live", headers=headers)
        if response.status_code != 200:
            return None
        self._etag = response.headers.get("etag", "")
        return response.content

    def forget_live(self) -> None:
        """Let the next `live` return what is published, whatever came before."""
        self._etag = ""

    def fetch(self, kind: Kind, digest: str, artifacts: Artifacts, scratch: Path) -> None:
        """Bring an artifact here. Its name vouches for every byte, so nothing is trusted."""
        manifest = self._call("GET", f"/gateway/artifacts/{kind}/{digest}/{MANIFEST}").content
        if len(manifest) > MAX_MANIFEST_BYTES or sha256(manifest).hexdigest() != digest:
            raise ArtifactDamaged(f"the learner sent another {kind} than {digest[:12]}")
        described = json.loads(manifest)
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=scratch))
        try:
            for name in described["files"]:
                self._fetch_file(f"/gateway/artifacts/{kind}/{digest}/{name}", folder / _safe(name))
            made = artifacts.publish(kind, folder, described["about"])
        finally:
            rmtree(folder, ignore_errors=True)
        if made.digest != digest:
            raise ArtifactDamaged(f"{kind} {digest[:12]} arrived damaged")

    def close(self) -> None:
        self._client.close()

    def _fetch_file(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                self._client.stream("GET", self._address() + path) as response,
                target.open("wb") as file,
            ):
                if response.status_code != 200:
                    raise NotRunning(f"the learner answers {response.status_code} to {path}")
                for part in response.iter_bytes():
                    file.write(part)
        except httpx2.HTTPError as error:
            raise _no_answer(self._address(), error) from error

    def _call(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        address = self._address()
        try:
            response = self._client.request(method, address + path, **arguments)
        except httpx2.HTTPError as error:
            raise _no_answer(address, error) from error
        if response.status_code in (401, 403):
            raise NotRunning(
                f"the learner at {address} refuses our token: set gateway.learner_token to what "
                "the learner's data folder holds in secrets/internal.key"
            )
        if response.status_code not in (200, 202, 204, 304):
            raise NotRunning(f"the learner at {address} answers {response.status_code} to {path}")
        return response


def _no_answer(address: str, error: Exception) -> NotRunning:
    return NotRunning(f"no learner answers at {address}: {type(error).__name__}")


def _safe(name: str) -> Path:
    """A manifest's file name that stays inside its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ArtifactDamaged(f"an artifact may not hold a file named {name!r}")
    return Path(*path.parts)
