"""An engine on this host: a process of its own for each chat model.

Whatever happens to the process, its requests end with an answer or with `EngineFailed`, and
it comes back with the adapters that are still wanted.
"""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from threading import Thread
from typing import Any

from pipelines.students.causal import CausalReply
from service.gateway.engines.base import EngineBusy, EngineFailed
from service.gateway.engines.keeper import EngineLimits, Job, Keeper, Rank
from service.metrics.gateway import GatewayMetrics


class LocalEngine:
    """The process starts with the first `load` and ends with this object."""

    def __init__(
        self,
        digest: str,
        base: Callable[[], Path],
        metrics: GatewayMetrics,
        *,
        threads: int,
        limits: EngineLimits | None = None,
    ) -> None:
        self._limits = limits or EngineLimits()
        self._metrics = metrics
        self._waiting = {Rank.APP: 0, Rank.PATIENT: 0}
        # The thread knows its keeper and not this: else this would never go.
        self._keeper = Keeper(digest, base, metrics, threads, self._limits)
        self._thread = Thread(target=self._keeper.run, name=f"engine-{digest[:8]}", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._keeper.stop)

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._keeper.pid

    def load(self, name: str, folder: Callable[[], Path]) -> None:
        job = Job(rank=Rank.SWAP, do="load", name=name, folder=folder)
        self._keeper.put(job)
        _result(job.future)

    def unload(self, name: str) -> None:
        self._keeper.put(Job(rank=Rank.SWAP, do="unload", name=name))

    def read(self, name: str, texts: Sequence[str]) -> list[CausalReply]:
        replies = []
        for text in texts:
            job = Job(rank=Rank.SWAP, do="read", name=name, texts=[text])
            self._keeper.put(job)
            replies.append(CausalReply(*_result(job.future)[0]))
        return replies

    async def answer(self, text: str, name: str, *, patient: bool = False) -> CausalReply:
        rank = Rank.PATIENT if patient else Rank.APP
        most = self._limits.patient if patient else self._limits.waiting
        if not self._keeper.up:
            raise EngineFailed("the engine is away")
        if self._waiting[rank] >= most:
            raise EngineBusy(f"{most} texts wait for the engine already")
        job = Job(rank=rank, do="read", name=name, texts=[text])
        self._waiting[rank] += 1
        self._metrics.engine_queue.inc()
        try:
            self._keeper.put(job)
            return CausalReply(*(await asyncio.wrap_future(job.future))[0])
        finally:
            self._waiting[rank] -= 1
            self._metrics.engine_queue.dec()

    def close(self) -> None:
        self._keeper.stop()
        self._thread.join(5.0)


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except CancelledError:
        raise EngineFailed("the engine is closed") from None
