"""Tells a webhook when an operator is needed: once an occasion, and once when it is over.

What is owed and what was told is in a small synced file, so that a restart repeats nothing and
forgets nothing. A crash between the webhook's answer and its record tells one occasion twice,
with the same id. All of it happens in a thread of its own: nothing waits for a webhook.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, Literal, get_args

import httpx2
import structlog

from pipelines.errors import FlywheelError
from service.metrics.learner import LearnerMetrics
from service.operator.status import Need
from service.operator.teacher_needs import REFUSED
from service.sections import NotifyKind, NotifySettings
from service.settings import Settings
from storage.durable import write_json

log = structlog.get_logger()

LOOK_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0
# What goes and comes back within this is still the same occasion.
SETTLED = timedelta(minutes=5)
# A decision does not come back.
DECIDED: frozenset[str] = frozenset({"approval", "rollback"})
KEPT = timedelta(days=7)
FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 300.0

State = Literal["needed", "over"]


class NotDelivered(FlywheelError):
    """The webhook did not take it. The message never names its address, which is a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What is kept in the file of a need: as much as there is to say about it later."""

    name: str
    kind: str
    title: str
    text: str
    page: str
    task: str = ""
    over: str = ""

    @classmethod
    def of(cls, need: Need) -> "Occasion":
        return cls(
            name=need.name,
            kind=need.kind,
            title=need.title,
            text=need.text,
            page=need.link,
            task=need.task,
            over=need.over,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What holds now. Of the names in `unclear` nobody can tell at the moment."""

    present: tuple[Occasion, ...]
    unclear: frozenset[str] = frozenset()

    @classmethod
    def of(cls, needs: Iterable[Need], *, teacher_refuses: bool | None) -> "Seen":
        """Whether the teacher refuses our key is unclear until the first call."""
        unclear = frozenset({REFUSED}) if teacher_refuses is None else frozenset[str]()
        told = tuple(Occasion.of(need) for need in needs if need.told)
        return cls(present=told, unclear=unclear)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One occasion, and what was said about it."""

    occasion: Occasion
    since: datetime
    told_at: datetime | None = None
    missing_since: datetime | None = None
    over_at: datetime | None = None
    over_told_at: datetime | None = None

    @property
    def id(self) -> str:
        """The same for each attempt, so that a receiver can see what it has had."""
        return f"{self.occasion.name}@{self.since.isoformat(timespec='seconds')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a webhook gets."""

    id: str
    state: State
    kind: str
    task: str
    title: str
    text: str
    link: str
    at: datetime


class Notifier:
    """Compares what is seen with what was told, and delivers the difference."""

    def __init__(
        self,
        settings: Settings,
        look: Callable[[], Seen],
        metrics: LearnerMetrics,
        *,
        console: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._settings = settings.notify
        self._look = look
        self._file = settings.folder.notifications
        self._metrics = metrics
        self._console = console.rstrip("/")
        self._now = now
        self._look_seconds = look_seconds
        self._told = _read(self._file)
        self._written = self._told
        self._webhook = _Webhook(self._settings) if self._settings.url.get_secret_value() else None
        self._failures = 0
        self._retry_at: datetime | None = None

    def run(self, stop: Event) -> None:
        """Until asked to stop. Whatever goes wrong here holds nothing else up."""
        while not stop.is_set():
            try:
                self.tick(stop)
            except FlywheelError as error:
                log.error("notify_failed", error=str(error))
            except Exception:  # the top of the thread; the loop does not need it
                log.exception("notify_failed")
            stop.wait(self._look_seconds)
        if self._webhook is not None:
            self._webhook.close()

    def tick(self, stop: Event | None = None) -> None:
        """Look once, and deliver what is owed, unless the webhook failed a moment ago."""
        seen = self._look()
        for kind in get_args(NotifyKind):
            here = any(occasion.kind == kind for occasion in seen.present)
            self._metrics.operator_needed.labels(kind=kind).set(here)
        if self._webhook is None:
            return
        self._told = advance(self._told, self._wanted(seen, self._webhook), self._now())
        self._write()
        if self._retry_at is None or self._now() >= self._retry_at:
            self._deliver(self._webhook, stop or Event())
        self._metrics.notifications_owed.set(len(list(self._owed())))

    def _wanted(self, seen: Seen, webhook: "_Webhook") -> Seen:
        wanted = [one for one in seen.present if one.kind in self._settings.kinds]
        return replace(seen, present=(_hello(webhook.fingerprint), *wanted))

    def _owed(self) -> Iterable[tuple[str, Message]]:
        for name, told in self._told.items():
            if told.over_at is None and told.told_at is None:
                yield name, self._message(told, "needed")
            elif (
                told.over_at is not None
                and told.told_at is not None
                and told.over_told_at is None
                and told.occasion.over
                and self._settings.when_over
            ):
                yield name, self._message(told, "over")

    def _message(self, told: Told, state: State) -> Message:
        one = told.occasion
        over = state == "over"
        return Message(
            id=told.id,
            state=state,
            kind=one.kind,
            task=one.task,
            title=f"Over: {one.title}" if over else one.title,
            text=one.over if over else one.text,
            link=self._console + one.page,
            at=told.over_at or told.since,
        )

    def _deliver(self, webhook: "_Webhook", stop: Event) -> None:
        for name, message in list(self._owed()):
            if stop.is_set():
                return
            try:
                webhook.post(message)
            except NotDelivered as error:
                self._note_failure(message, error)
                return  # the others would fail as well
            self._failures, self._retry_at = 0, None
            told, now = self._told[name], self._now()
            done = (
                replace(told, told_at=now)
                if message.state == "needed"
                else replace(told, over_told_at=now)
            )
            self._told = {**self._told, name: done}
            self._write()
            self._metrics.notifications.labels(kind=message.kind, outcome="sent").inc()
            log.info("operator_notified", kind=message.kind, state=message.state, id=message.id)

    def _note_failure(self, message: Message, error: NotDelivered) -> None:
        """Full jitter, up to five minutes, for as long as the occasion lasts."""
        self._failures += 1
        most = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10))
        wait = random.uniform(most / 2, most)
        self._retry_at = self._now() + timedelta(seconds=wait)
        self._metrics.notifications.labels(kind=message.kind, outcome="failed").inc()
        log.warning(
            "notification_failed",
            kind=message.kind,
            error=str(error),
            attempts=self._failures,
            next_in_seconds=round(wait),
        )

    def _write(self) -> None:
        """On a full disk it is kept in mind: to tell is worth more than to tell once."""
        if self._told == self._written:
            return
        content = {name: _to_json(told) for name, told in self._told.items()}
        try:
            write_json(self._file, content, mode=0o600)
        except (FlywheelError, OSError) as error:
            log.error("notifications_not_written", error=str(error))
            return
        self._written = self._told


def advance(told: Mapping[str, Told], seen: Seen, now: datetime) -> dict[str, Told]:
    """What is known after one more look: new occasions, those that are over, none forgotten."""
    present = {occasion.name: occasion for occasion in seen.present}
    after: dict[str, Told] = {}
    for name, before in told.items():
        if name in present and before.over_at is None:
            after[name] = replace(before, missing_since=None)
        elif name in seen.unclear or before.over_at is not None:
            after[name] = before
        else:
            since = before.missing_since or now
            settled = before.occasion.kind in DECIDED or now - since >= SETTLED
            after[name] = replace(before, missing_since=since, over_at=now if settled else None)
    for name, occasion in present.items():
        if name not in after or after[name].over_at is not None:
            after[name] = Told(occasion=occasion, since=now)
    return {
        name: one for name, one in after.items() if one.over_at is None or now - one.over_at < KEPT
    }


def as_json(message: Message) -> dict[str, Any]:
    """Plain JSON, for programs."""
    return {"source": "flywheel", **asdict(message), "at": message.at.isoformat()}


def as_slack(message: Message) -> dict[str, Any]:
    """What Slack's incoming webhooks read, and those that are made like them."""
    title, text = _escaped(message.title), _escaped(message.text)
    whole = f"*{title}*\n{text}\n<{message.link}|Open the console>"
    return {
        "text": whole,
        "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": whole}}],
    }


class _Webhook:
    """One address. No redirect is followed, and nothing that it says is trusted."""

    def __init__(self, settings: NotifySettings) -> None:
        self._url = settings.url.get_secret_value()
        self._shape = as_slack if settings.format == "slack" else as_json
        self._client = httpx2.Client(
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
            headers={"user-agent": "flywheel-learner"},
        )
        self.fingerprint = sha256(self._url.encode()).hexdigest()[:12]

    def post(self, message: Message) -> None:
        """Deliver, or raise `NotDelivered`."""
        try:
            answer = self._client.post(self._url, json=self._shape(message))
        except httpx2.HTTPError as error:
            raise NotDelivered(f"the webhook gave no answer: {type(error).__name__}") from None
        if not answer.is_success:
            raise NotDelivered(f"the webhook said {answer.status_code}")

    def close(self) -> None:
        self._client.close()


def _hello(fingerprint: str) -> Occasion:
    """The first message to an address: whoever set it sees that it works."""
    return Occasion(
        name=f"hello:{fingerprint}",
        kind="hello",
        title="flywheel says here when an operator is needed",
        text="This was told once, because notify.url is new. Nothing is to be done.",
        page="/",
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _read(file: Path) -> dict[str, Told]:
    """What was told before; nothing where there is no file, or none that can be read."""
    try:
        content = json.loads(file.read_bytes())
        return {name: _from_json(told) for name, told in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("notifications_unreadable", error=type(error).__name__)
        return {}


MOMENTS = ("since", "told_at", "missing_since", "over_at", "over_told_at")


def _to_json(told: Told) -> dict[str, Any]:
    moments = {name: getattr(told, name) for name in MOMENTS}
    written = {name: at and at.isoformat() for name, at in moments.items()}
    return {"occasion": asdict(told.occasion), **written}


def _from_json(content: Mapping[str, Any]) -> Told:
    moments = {name: content[name] and datetime.fromisoformat(content[name]) for name in MOMENTS}
    return Told(occasion=Occasion(**content["occasion"]), **moments)
