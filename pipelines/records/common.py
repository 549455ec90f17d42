"""What all shapes share: the policy, ids, times, and the hash that stands for a user."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated

from msgspec import Meta

from pipelines.errors import InvalidMessage

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
# How far a producer's clock may run ahead of the topic's.
MAX_AHEAD = timedelta(days=1)
LONGEST_USER = 500

Name = Annotated[str, Meta(min_length=1, max_length=200)]
TokenCount = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Attributes = Annotated[
    dict[Annotated[str, Meta(max_length=100)], Annotated[str, Meta(max_length=1000)]],
    Meta(max_length=50),
]
_EARLIEST_MS = int(EARLIEST.timestamp() * 1000)
_LATEST_MS = int(LATEST.timestamp() * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePolicy:
    """What the settings say about records: the same for every record of a run."""

    claims: Mapping[str, str]  # model name -> task name
    tasks: frozenset[str] = frozenset()  # the tasks that a record may name itself
    producer_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    # Producers of our own, whose ids are unique as they are.
    own_producers: frozenset[str] = frozenset()
    user_salt: bytes = field(repr=False)
    max_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        if not self.user_salt:
            raise ValueError("user_salt is empty: user keys would be the same everywhere")


def refuse_unknown_role(role: str) -> None:
    if role not in ROLES:
        raise InvalidMessage("a message's role is not one that chat models know")


@lru_cache(maxsize=4096)  # users come back
def user_key(user: str, salt: bytes) -> str:
    """The keyed hash that stands for a user everywhere behind this point."""
    if len(salt) > 64:  # the longest key that blake2b takes
        salt = blake2b(salt).digest()
    return blake2b(user.encode(), key=salt, digest_size=16).hexdigest()


def user_name(user: object) -> str | None:
    """The app's name for a user: text or a number, of an object its id. None: it has none."""
    if isinstance(user, dict):
        user = user.get("id") or user.get("user_id") or user.get("name")
    if isinstance(user, bool) or not isinstance(user, str | int):
        return None
    return str(user)[:LONGEST_USER] or None


def given_id(given: str | None) -> str:
    """As the producer says; empty: it does not."""
    if given is not None and not given.isprintable():
        raise InvalidMessage("event_id contains characters that do not print")
    return given or ""


def moment(given: datetime | None, timestamp_ms: int) -> datetime:
    """When it happened, in UTC. The topic's own time bounds what a producer may claim."""
    if given is None:
        written = _record_time(timestamp_ms)
        if written is None:
            raise InvalidMessage("no occurred_at, and the record has no usable time of its own")
        return written
    if not EARLIEST <= given < LATEST:
        raise InvalidMessage("the event's time is before 2000 or after 2099")
    # Nearly all are within the bound of their record's minute; only the others need the exact one.
    if given > _latest_in_minute(timestamp_ms // 60_000):
        written = _record_time(timestamp_ms)
        if written is not None and given - written > MAX_AHEAD:
            raise InvalidMessage("the event's time is more than a day after its record was written")
    return given if given.tzinfo is UTC else given.astimezone(UTC)


@lru_cache(maxsize=64)
def _latest_in_minute(minute: int) -> datetime:
    """Up to this time an event is fine in any record of the minute, counted from 1970."""
    written = _record_time(minute * 60_000)
    return EARLIEST if written is None else written + MAX_AHEAD


def _record_time(timestamp_ms: int) -> datetime | None:
    if not _EARLIEST_MS <= timestamp_ms < _LATEST_MS:
        return None
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
