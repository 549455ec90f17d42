"""Witnesses of a chaos run that the program cannot fool: each has its own synced log."""

import json
import os
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import httpx2

from pipelines.errors import FlywheelError
from pipelines.records.native import SCHEMA, NativeRecord, NativeStudent, encode_native
from pipelines.records.signature import sign
from pipelines.types import Message
from service.client import LearnerClient
from service.settings import Settings
from service.topics.opening import open_writer

TASK = "support"
PRODUCER = "chaos"
ELSEWHERE = "elsewhere-v1"  # the student that the producer's events name
PRODUCED_AT_ONCE = 50
CLIENTS = 2
PHRASES: Mapping[str, tuple[str, ...]] = {
    "refund": ("i want my money back for {}", "please refund what i paid for {}",
               "give me back the money i spent on {}"),
    "delivery": ("where is the parcel with {}", "when will {} be delivered to me",
                 "the courier has not brought {} yet"),
    "cancel": ("cancel my order of {} now", "i do not want {} any more, stop the order",
               "please call off the order for {}"),
}  # fmt: skip
LABELS = tuple(PHRASES)
CUSTOMERS_FROM = 10**9  # their texts have other numbers than the producer's
# Of so many of either none is about a delivery: what learns from these is worse than what learns
# from more, so that the gate has a reason to let a second student pass.
FIRST_EVENTS = 1_000
COLOURS = ("blue", "red", "green", "black", "white", "yellow", "grey", "old", "new", "small")
THINGS = ("lamp", "sofa", "phone", "chair", "book", "coffee machine", "coat", "table", "radio",
          "bike", "curtain", "watch", "tent", "mirror", "carpet", "kettle")  # fmt: skip
Sums = Counter[tuple[datetime, str]]  # events by minute and label


def text_of(number: int) -> tuple[str, str]:
    """A message that nobody else has, and its label."""
    asked = LABELS[::2] if number % CUSTOMERS_FROM < FIRST_EVENTS else LABELS
    label = asked[number % len(asked)]
    phrase = PHRASES[label][number // 3 % 3]
    thing = f"the {COLOURS[number // 9 % 10]} {THINGS[number // 90 % 16]}"
    return f"{phrase.format(thing)} (number {number})", label


def confidence_of(number: int) -> float:
    """In sixteenths, so that sums are exact in any order."""
    return (8 + number % 8) / 16


class SyncedLog:
    """Lines of JSON that are on disk when `write` returns. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = Lock()

    def write(self, **line: Any) -> None:
        with self._lock:
            os.write(self._file, json.dumps(line).encode() + b"\n")
            os.fsync(self._file)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class Worker(ABC):
    """A thread that goes on until its end; what broke it is raised there."""

    def __init__(self) -> None:
        self._stop = Event()
        self._problem: BaseException | None = None
        self._thread = Thread(target=self._guarded, name=type(self).__name__, daemon=True)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._problem is not None and error[0] is None:
            raise self._problem

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as problem:
            self._problem = problem

    @abstractmethod
    def _run(self) -> None: ...


class Producer(Worker):
    """Puts events on the topic, and notes what the topic has acknowledged."""

    def __init__(self, settings: Settings, log: SyncedLog, *, events: int, key: bytes) -> None:
        super().__init__()
        self._writer = open_writer(settings)
        self._log = log
        self._key = key
        self._events = events
        self.sent = 0
        self.rate = 100.0
        self.hold_at: int | None = None  # events; none: go on

    def _run(self) -> None:
        try:
            while self.sent < self._events and not self._stop.is_set():
                if self.hold_at is not None and self.sent >= self.hold_at:
                    self._stop.wait(0.1)
                    continue
                started = time.monotonic()
                self._send(range(self.sent, min(self.sent + PRODUCED_AT_ONCE, self._events)))
                self._stop.wait(max(0.0, PRODUCED_AT_ONCE / self.rate - time.monotonic() + started))
        finally:
            self._writer.close()

    def wait(self) -> None:
        """Until all was sent."""
        while self.sent < self._events and self._thread.is_alive():
            time.sleep(0.05)

    def _send(self, numbers: range) -> None:
        at = datetime.now(UTC)
        for number in numbers:
            value = encode_native(_event(number, at))
            headers = sign(value, PRODUCER, self._key)
            self._writer.send(value, key=str(number).encode(), headers=headers)
        self._writer.flush(60)
        self._log.write(first=numbers.start, end=numbers.stop, at=at.isoformat())
        self.sent = numbers.stop


def _event(number: int, at: datetime) -> NativeRecord:
    text, label = text_of(number)
    student = NativeStudent(version=ELSEWHERE, label=label, confidence=confidence_of(number))
    return NativeRecord(
        schema=SCHEMA,
        event_id=f"{PRODUCER}-{number}",
        task=TASK,
        model=TASK,
        occurred_at=at,
        messages=(Message("user", text),),
        answer=label,
        served_by="student",
        student=student,
        user=f"user-{number % 977}",
    )


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What the send log stands for."""

    numbers: int
    events: Sums
    confidence: float

    @classmethod
    def read(cls, log: SyncedLog) -> "Acknowledged":
        events: Sums = Counter()
        total, confidence = 0, 0.0
        for line in log.lines():
            minute = datetime.fromisoformat(line["at"]).replace(second=0, microsecond=0)
            for number in range(line["first"], line["end"]):
                events[minute, text_of(number)[1]] += 1
                confidence += confidence_of(number)
                total += 1
        return cls(total, events, confidence)


class Customers(Worker):
    """Ask the gateway without a pause to think, and note each answer and each failure."""

    def __init__(self, address: str, log: SyncedLog, *, seed: int) -> None:
        super().__init__()
        self._url = f"{address}/v1/chat/completions"
        self._log = log
        self._dice = random.Random(seed)
        self._serial = CUSTOMERS_FROM
        self.pause = 0.1
        self.answered_at = 0.0  # when the latest answered request was sent

    def _run(self) -> None:
        with httpx2.Client(timeout=20) as client:
            while not self._stop.is_set():
                self._ask(client)

    def _ask(self, client: httpx2.Client) -> None:
        self._serial += 1
        text, _ = text_of(self._serial)
        body = {"model": TASK, "messages": [{"role": "user", "content": text}]}
        sent = time.time()
        try:
            reply = client.post(self._url, json=body)
        except httpx2.HTTPError as error:
            self._log.write(sent=sent, failed=type(error).__name__)
            time.sleep(0.02)
            return
        event_id = reply.headers.get("x-flywheel-event-id")
        version = reply.headers.get("x-flywheel-version")
        self._log.write(
            sent=sent, at=time.time(), status=reply.status_code, event=event_id, version=version
        )
        if reply.status_code == 200:
            self.answered_at = max(self.answered_at, sent)
        time.sleep(self.pause)


class Operator(Worker):
    """Approves what the gate lets through, and rolls back and forth between what was approved.

    What it is about to approve it writes down first.
    """

    def __init__(self, client: Callable[[], LearnerClient], log: SyncedLog) -> None:
        super().__init__()
        self._client = client
        self._log = log
        self._turn = 0
        self.train = Event()  # set: ask for a training
        self.approved: list[tuple[int, str]] = []

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            try:
                self._look()
            except (FlywheelError, OSError, ValueError):
                continue  # the learner is dead just now

    def _look(self) -> None:
        client = self._client()
        if self.train.is_set():
            client.post("tasks", TASK, "train")
            self.train.clear()
        task = client.get("status")["tasks"][0]
        if task["waiting"]:
            self._approve(client, task["waiting"])
        elif len(self.approved) > 1:
            self._turn += 1
            if self._turn % 3 == 0:
                self._swap(client, task["champion"]["number"])

    def _approve(self, client: LearnerClient, version: Mapping[str, Any]) -> None:
        number, name = int(version["number"]), str(version["name"])
        self._log.write(approve=name, number=number)
        if (number, name) not in self.approved:
            self.approved.append((number, name))
        body = {"report": version["report"], "serves_nothing": version["threshold"] is None}
        client.post("tasks", TASK, "versions", str(number), "approve", body=body)

    def _swap(self, client: LearnerClient, champion: int) -> None:
        others = [number for number, _ in self.approved if number != champion]
        body = {"to": others[-1], "reason": "a chaos run swaps"}
        client.post("tasks", TASK, "rollback", body=body)


def answers_of(log: SyncedLog) -> Iterator[dict[str, Any]]:
    """The requests that were answered."""
    return (line for line in log.lines() if line.get("status") == 200)
