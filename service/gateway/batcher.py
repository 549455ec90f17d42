"""Micro-batches: what arrives while the encoder is busy goes into its next run together.

Nothing waits for company: a request that finds the encoder idle runs at once and alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from pipelines.students.encoder import Encoder, Vectors
from pipelines.types import LabelledAnswer
from service.gateway.student import StudentReply

MAX_BATCH = 32
# Assessments wait for requests, so their batches are small: a request may have to wait for one.
MAX_PATIENT_BATCH = 4


Outcome = StudentReply | Exception


class Head(Protocol):
    """What answers from the vectors of texts."""

    def answer(self, vectors: Vectors) -> list[LabelledAnswer]: ...


class _Waiting(NamedTuple):
    text: str
    head: Head
    future: asyncio.Future[StudentReply]


class Batcher:
    """Runs one encoder in one thread, which ends when the last reference to this is gone."""

    def __init__(self, encoder: Encoder, observe: Callable[[float, int], None]) -> None:
        self.encoder = encoder
        self._observe = observe
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._waiting: deque[_Waiting] = deque()
        self._patient: deque[_Waiting] = deque()
        self._running = False

    async def answer(self, text: str, head: Head, *, patient: bool = False) -> StudentReply:
        """What `head` says to `text`. `patient`: behind everybody who is not."""
        future: asyncio.Future[StudentReply] = asyncio.get_running_loop().create_future()
        (self._patient if patient else self._waiting).append(_Waiting(text, head, future))
        if not self._running:
            self._start_next()
        return await future

    def _start_next(self) -> None:
        queue, most = (
            (self._waiting, MAX_BATCH) if self._waiting else (self._patient, MAX_PATIENT_BATCH)
        )
        batch = [queue.popleft() for _ in range(min(most, len(queue)))]
        self._running = bool(batch)
        if batch:
            run = asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
            run.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: Sequence[_Waiting], done: asyncio.Future[list[Outcome]]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        outcomes: Sequence[Outcome | BaseException] = (
            [error] * len(batch) if error else done.result()
        )
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.future.done():  # its request is gone
                continue
            if isinstance(outcome, StudentReply):
                waiting.future.set_result(outcome)
            else:
                waiting.future.set_exception(outcome)
        self._start_next()

    def _run(self, batch: Sequence[_Waiting]) -> list[Outcome]:
        started = time.perf_counter()
        try:
            outcomes: list[Outcome] = [*self._read(batch)]
        except Exception as error:  # whatever breaks in the model, it is of one text
            outcomes = [self._read_alone(waiting) for waiting in batch] if batch[1:] else [error]
        self._observe(time.perf_counter() - started, len(batch))
        return outcomes

    def _read_alone(self, waiting: _Waiting) -> Outcome:
        try:
            return self._read([waiting])[0]
        except Exception as error:
            return error

    def _read(self, batch: Sequence[_Waiting]) -> list[StudentReply]:
        reading = self.encoder.read([waiting.text for waiting in batch])
        replies: dict[int, StudentReply] = {}
        # A batch may span a swap: each text is answered by the head that it came with.
        for head in {id(waiting.head): waiting.head for waiting in batch}.values():
            rows = [at for at, waiting in enumerate(batch) if waiting.head is head]
            for row, answer in zip(rows, head.answer(reading.vectors[rows]), strict=True):
                tokens, truncated = reading.tokens[row], reading.truncated[row]
                replies[row] = StudentReply(
                    answer.label, answer.confidence, tokens, truncated, answer.distance
                )
        return [replies[row] for row in range(len(batch))]
