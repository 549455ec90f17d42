"""A teacher's stream on its way to the app: handed on as it comes, listened to, ended by either."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pipelines.replies import Completion
from service.gateway.dialects import Dialect
from service.gateway.upstream import Reply, UpstreamError


class Relay(StreamingResponse):
    """Tells `on_end` once whether the app got what the teacher had to say, and what that was.

    A stream whose end was announced is whole, whoever leaves first. One that the app leaves in
    the middle has no answer; only one that the teacher breaks off has failed.
    """

    def __init__(
        self,
        reply: Reply,
        stack: AsyncExitStack,
        headers: Mapping[str, str],
        on_end: Callable[[bool, Completion], None],
        dialect: Dialect,
    ) -> None:
        super().__init__(self._pieces(), reply.status, headers)
        self._reply = reply
        self._stack = stack  # holds the reply open
        self._on_end = on_end
        self._dialect = dialect
        self._reader = dialect.listener()
        self._broken = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The end is noted here, not in the generator: when the app leaves, that one is cancelled
        # wherever it is, perhaps before it has begun.
        async with self._stack:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self._on_end(self._reply.ok and not self._broken, self._reader.completion())

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._reply.stream():
                self._reader.feed(part)
                yield part
            self._reader.close()
        except UpstreamError as error:
            if self._reader.ended:
                return
            self._broken = True
            # The status is sent; clients read an error in the stream itself.
            yield self._dialect.broken(str(error), f"teacher_{error.kind}")
