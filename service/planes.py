"""What the two planes say to each other: leases, assessments, what a gateway serves, addresses.

Both planes import it and neither imports the other. A gateway may be older than its learner: a
field is only ever added, with a default.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from pipelines.reach import Reach
from pipelines.types import Message
from service.settings import Settings

# What a gateway's failure is filed under when it concerns no single task.
EVERYTHING = "all"
# Of a published student: the one that serves, or the one that is kept for a rollback.
Role = Literal["champion", "previous"]


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway tells the learner. Spent is counted from the lease's start."""

    gateway: str
    lease_id: str | None = None
    spent_calls: int = 0
    spent_money: float = 0.0
    release: bool = False  # the rest is not needed any more


class LeaseReply(msgspec.Struct, frozen=True, kw_only=True):
    """What may be spent under the lease in all, from its start, and for how long."""

    lease_id: str | None = None
    calls: int = 0
    money: float = 0.0
    seconds: float = 0.0


class AssessEvent(msgspec.Struct, frozen=True):
    """One event that came without a student's answer."""

    event_id: str
    messages: tuple[Message, ...]


class AssessRequest(msgspec.Struct, frozen=True):
    """Events of one task, at most 256. `role` previous: the version approved before."""

    task: str
    events: list[AssessEvent]
    role: Role = "champion"


class AssessAnswer(msgspec.Struct, frozen=True):
    """What the student would have said."""

    event_id: str
    label: str
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)]  # a NaN would stay in the sums
    reach: Reach | None = None
    unsure: str = ""


class AssessReply(msgspec.Struct, frozen=True):
    """The answers of one version, in the order of the events; some may have none."""

    version: str
    answers: list[AssessAnswer]


class GatewayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway serves, and what it should and does not. Sent on every change."""

    gateway: str
    serving: dict[str, str]  # version name by task
    failed: dict[str, str]  # why not what is published, by task
    serial: int = -1  # of the publication that it follows


def learner_address(settings: Settings) -> str:
    """Where the learner listens: as set, or as the one on this host wrote down."""
    if settings.gateway.learner_url:
        return settings.gateway.learner_url.rstrip("/")
    try:
        return f"http://127.0.0.1:{int(_noted(settings, 'learner')['port'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return settings.learner_url


def gateway_address(settings: Settings) -> str:
    """Where a gateway listens; one on port 0 says in the data folder where."""
    if settings.learner.gateway_url or settings.gateway.port:
        return settings.gateway_url
    try:
        return f"http://127.0.0.1:{_noted(settings, 'gateway')['port']}"
    except (OSError, ValueError, KeyError, TypeError):
        return settings.gateway_url


def _noted(settings: Settings, plane: Literal["learner", "gateway"]) -> Mapping[str, Any]:
    noted: Mapping[str, Any] = json.loads(settings.folder.note(plane).read_text())
    return noted
