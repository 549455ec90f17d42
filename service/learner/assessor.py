"""Asks the gateway what the student would have said to events that came without its answer."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import httpx2
import msgspec
import structlog

from pipelines.types import Message, StudentAnswer
from service.planes import AssessEvent, AssessReply, AssessRequest, Role, gateway_address
from service.settings import Settings

log = structlog.get_logger()

BATCH = 128
TIMEOUT_SECONDS = 10.0
PATIENCE_SECONDS = 10.0


class Asked(Protocol):
    """What is read by a student: an event, or a stored sample."""

    @property
    def event_id(self) -> str: ...

    @property
    def messages(self) -> Sequence[Message]: ...


class Assessor:
    """A client of `/v1/assess`. While the gateway is down, events go unassessed and are counted."""

    def __init__(self, url: Callable[[], str], key: str = "") -> None:
        self._url = url  # asked each time: the gateway may come back on another port
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=TIMEOUT_SECONDS, headers=headers)
        self._down_since: float | None = None
        self._said = False

    def assess(
        self, task: str, events: Sequence[Asked], role: Role = "champion"
    ) -> dict[str, StudentAnswer]:
        """Answers by event id; empty for what could not be assessed."""
        answers: dict[str, StudentAnswer] = {}
        for start in range(0, len(events), BATCH):
            found = self._ask(task, events[start : start + BATCH], role)
            if found is None:
                break
            answers |= found
        return answers

    def close(self) -> None:
        self._client.close()

    def _ask(
        self, task: str, events: Sequence[Asked], role: Role
    ) -> dict[str, StudentAnswer] | None:
        wanted = AssessRequest(
            task, [AssessEvent(event.event_id, tuple(event.messages)) for event in events], role
        )
        try:
            response = self._client.post(
                f"{self._url()}/v1/assess",
                content=msgspec.json.encode(wanted),
                headers={"content-type": "application/json"},
            )
            response.raise_for_status()
            found = msgspec.json.decode(response.content, type=AssessReply)
        except (httpx2.HTTPError, ValueError) as error:
            self._note_failure(task, error)
            return None
        if self._said:
            log.info("assessment_resumed")
        self._down_since, self._said = None, False
        return {
            answer.event_id: StudentAnswer(
                version=found.version,
                label=answer.label,
                confidence=answer.confidence,
                reach=answer.reach,
                unsure=answer.unsure,
            )
            for answer in found.answers
        }

    def _note_failure(self, task: str, error: Exception) -> None:
        """A gateway that is just loading a first student is nobody's business."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since >= PATIENCE_SECONDS and not self._said:
            log.warning("assessment_unavailable", task=task, error=type(error).__name__)
            self._said = True


def open_assessor(settings: Settings) -> Assessor:
    """With the first of the gateway's keys, if it wants one."""
    key = settings.gateway.keys[0].get_secret_value() if settings.gateway.keys else ""
    return Assessor(lambda: gateway_address(settings), key)
