"""The secrets of one installation, made at first start and readable by their owner only.

One internal key is shared by learner and gateways; what signs what is derived from it, so
that a gateway on another machine needs a single secret (`gateway.learner_token`).
"""

import hmac
import os
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from pipelines.errors import SettingsError
from storage.durable import sync_folder, write_durably
from storage.failpoints import passing
from storage.folder import DataFolder

GATEWAY_PRODUCER = "gateway"
IMPORT_PRODUCER = "flywheel-import"  # an operator's `--teacher-answers`


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Everything derived from the internal key. Never printed."""

    internal: str = field(repr=False)

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self.internal.encode(), purpose.encode(), sha256).digest()

    @property
    def capture(self) -> bytes:
        """Signs what the gateway puts on the topic."""
        return self._derive("capture")

    @property
    def imports(self) -> bytes:
        """Signs logs of which an operator says that the answers are the teacher's."""
        return self._derive("imports")

    @property
    def live(self) -> bytes:
        """Signs `live.json`."""
        return self._derive("live")

    @property
    def users(self) -> bytes:
        """Keys the hash that stands for a user."""
        return self._derive("users")

    @property
    def sampling(self) -> bytes:
        """Salts the draws, so that nobody outside can tell what will be chosen."""
        return self._derive("sampling")


def open_keys(data_dir: Path, token: str = "") -> Keys:
    """The installation's keys: from `token` where one is set, else from the data folder."""
    return Keys(internal=token or _read_or_make(DataFolder(data_dir).internal_key))


def operator_token(data_dir: Path) -> str:
    """What opens the console and the operator API."""
    return _read_or_make(DataFolder(data_dir).operator_token)


def read_operator_token(data_dir: Path) -> str:
    """The token that a running learner made; `SettingsError` where there is none."""
    path = DataFolder(data_dir).operator_token
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"no operator token in {path.parent}: {error.strerror}; "
            "start the learner once, and use the same data folder as it does"
        ) from error


def _read_or_make(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _make(path)
    if found := path.read_text().strip():
        return found
    raise SettingsError(f"{path} is empty; remove it, and a new one is made at the next start")


def _make(path: Path) -> None:
    """Written whole, then given its name: of two processes that start together, one wins."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_durably(temporary, secrets.token_urlsafe(32).encode(), mode=0o600)
    passing("keys.written")
    try:
        os.link(temporary, path)
        passing("keys.linked")
    except FileExistsError:
        return
    finally:
        temporary.unlink()
    sync_folder(path.parent)
