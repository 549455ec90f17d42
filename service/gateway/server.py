"""The HTTP server of the gateway: its signals, its end."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from pipelines.errors import ExitCode

try:
    import uvloop

    from service.gateway.protocol import Protocol
except ImportError:  # both are compiled, and not for every platform
    HTTP: type[asyncio.Protocol] | Literal["h11"] = "h11"
    NEW_LOOP = None
else:
    HTTP, NEW_LOOP = Protocol, uvloop.new_event_loop

LOOK_SECONDS = 0.1
# Longer than clients keep an idle connection (httpx and openai: 5 s, uvicorn's own default). Where
# both end at the same moment, a request goes into a connection that is just being closed.
KEEP_ALIVE_SECONDS = 75


def run(main: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run` does, with the fastest loop there is."""
    with asyncio.Runner(loop_factory=NEW_LOOP) as runner:
        runner.run(main)


class Server(uvicorn.Server):
    """uvicorn, but a signal ends it with an exit code of 0, and a second one at once."""

    def __init__(self, app: ASGIApp, drain_seconds: float, on_drain: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            http=HTTP,
            ws="none",
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        super().__init__(config)
        self._on_drain = on_drain

    def drain(self) -> None:
        """Finish what was begun and end."""
        self._on_drain()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(ExitCode.FAILURE)
        self.drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self.handle_exit) for name in wanted}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    async def stop_with(self, stop: threading.Event) -> None:
        """Drain when `stop` is set."""
        while not stop.is_set():
            await asyncio.sleep(LOOK_SECONDS)
        self.drain()
