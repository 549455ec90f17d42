"""The customers: prompts at a steady rate through the plain `openai` client, and what came back."""

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Literal

import openai

from service.demo.traffic import DemoMessage, Traffic

NEW_INTENT_SHARE = 0.2
# The new intent comes this long after an approved student has answered its first customer.
NEW_INTENT_AFTER_SECONDS = 25.0
RECENT = 400
MAX_IN_FLIGHT = 64


@dataclass(slots=True)
class Seen:
    """What the customers have seen. Written by one thread, read by another."""

    sent: int = 0
    failed: int = 0
    by: Counter[str] = field(default_factory=Counter)  # student | teacher
    versions: Counter[str] = field(default_factory=Counter)
    last_version: str = ""
    right: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    student_right: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    served_by_student: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    first_student_at: float | None = None
    new_intent_at: float | None = None
    last_error: str = ""


class Customers:
    """Sends the demonstration's traffic from its own thread until stopped."""

    def __init__(
        self, traffic: Traffic, *, base_url: str, model: str, instructions: str, rate: float
    ) -> None:
        self._traffic = traffic
        self._model = model
        self._instructions = instructions
        self._rate = rate
        self._base_url = base_url
        self._stop = Event()
        self.seen = Seen()
        self._thread = Thread(target=lambda: asyncio.run(self._run()), name="customers")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with openai.AsyncOpenAI(
            base_url=self._base_url, api_key="demo", max_retries=0, timeout=30
        ) as client:
            in_flight: set[asyncio.Task[None]] = set()
            started, index = time.monotonic(), 0
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, started + index / self._rate - time.monotonic()))
                if len(in_flight) >= MAX_IN_FLIGHT:  # a slow machine: fewer customers, no pile
                    await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                    started, index = time.monotonic(), 0
                message = self._traffic.message(self.seen.sent, new_intent_share=self._share())
                task = asyncio.create_task(self._ask(client, message))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
                self.seen.sent += 1
                index += 1
            if in_flight:
                await asyncio.wait(in_flight, timeout=10)

    def _share(self) -> float:
        """The new intent appears midway: when a student serves that has never met it."""
        seen, now = self.seen, time.monotonic()
        if seen.first_student_at is None:
            return 0.0
        if now - seen.first_student_at < NEW_INTENT_AFTER_SECONDS:
            return 0.0
        if seen.new_intent_at is None:
            seen.new_intent_at = now
        return NEW_INTENT_SHARE

    async def _ask(self, client: openai.AsyncOpenAI, message: DemoMessage) -> None:
        try:
            reply = await client.chat.completions.with_raw_response.create(
                model=self._model,
                user=message.user,
                messages=[
                    {"role": "system", "content": self._instructions},
                    {"role": "user", "content": message.text},
                ],
            )
            answer = reply.parse().choices[0].message.content
        except openai.OpenAIError as error:
            self.seen.failed += 1
            self.seen.last_error = type(error).__name__
            return
        by: Literal["student", "teacher"] = (
            "student" if reply.headers.get("x-flywheel-served-by") == "student" else "teacher"
        )
        self._note(by, reply.headers.get("x-flywheel-version", ""), answer == message.intent)

    def _note(self, by: Literal["student", "teacher"], version: str, right: bool) -> None:
        seen = self.seen
        seen.by[by] += 1
        seen.right.append(right)
        seen.served_by_student.append(by == "student")
        if by == "student":
            seen.student_right.append(right)
            seen.versions[version] += 1
            seen.last_version = version
            if seen.first_student_at is None:
                seen.first_student_at = time.monotonic()
