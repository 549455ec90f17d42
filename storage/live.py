"""`live.json`: which students are served. Written by the learner, obeyed by every gateway.

It is signed, so that a gateway serves nothing that was not approved through the learner.
"""

import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import DataDamaged
from pipelines.recipes import FamilyName
from storage.durable import write_durably
from storage.failpoints import passing


class LiveStudent(msgspec.Struct, frozen=True, kw_only=True):
    """One servable student: approved by a decision, with what its report certified."""

    name: str  # support-v3-1f2e3d4c: what answers carry
    number: int
    student: str  # content hash of the artifact
    family: FamilyName = "head"
    base: str  # content hash of the encoder or chat model that it reads with
    report: str  # content hash of the report; holds the golden prompts
    decision: str  # digest of the decision that approved it
    threshold: float | None  # None: nothing certified, everything is unsure
    # Cosine distances from its prototypes: half of what was certified lies within `near`, and
    # beyond `radius` it is unsure. None: of a student without prototypes.
    near: float | None = None
    radius: float | None = None


class LiveTask(msgspec.Struct, frozen=True, kw_only=True):
    """The champion of a task, and the one to keep resident for a rollback."""

    champion: LiveStudent | None = None
    previous: LiveStudent | None = None


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `serial` grows by one with each publication."""

    format: int = 1
    serial: int = 0
    tasks: dict[str, LiveTask] = {}


def encode_live(live: Live, key: bytes) -> bytes:
    """The file's bytes: the content and its signature."""
    content = msgspec.json.encode(live).decode()
    return json.dumps({"live": content, "signature": _sign(content, key)}).encode()


def decode_live(content: bytes, key: bytes) -> Live:
    """Check the signature and read. Raises `DataDamaged` for anything we did not write."""
    try:
        envelope: dict[str, Any] = json.loads(content)
        body, signature = str(envelope["live"]), str(envelope["signature"])
        if not hmac.compare_digest(signature, _sign(body, key)):
            raise DataDamaged("live.json is not signed by this learner; nothing in it is served")
        return msgspec.json.decode(body, type=Live)
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise DataDamaged(f"live.json cannot be read: {error}") from error


def write_live(path: Path, live: Live, key: bytes) -> None:
    """Publish atomically: a gateway sees the old file or the new one."""
    passing("live.decided")
    write_durably(path, encode_live(live, key))
    passing("live.published")


def read_live(path: Path, key: bytes) -> Live:
    """What is published, or an empty `Live` before the first publication."""
    try:
        return decode_live(path.read_bytes(), key)
    except FileNotFoundError:
        return Live()


def _sign(content: str, key: bytes) -> str:
    return hmac.new(key, b"flywheel-live\0" + content.encode(), sha256).hexdigest()
