"""What this gateway may spend on escalations: a lease that the learner grants and extends."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from pipelines.errors import FlywheelError
from service.metrics.gateway import GatewayMetrics
from service.planes import LeaseReply, LeaseRequest

log = structlog.get_logger()

RENEW_SECONDS = 1.0
# How long the first unsure request waits for a lease.
PATIENCE_SECONDS = 0.5
# A lease that nobody has wanted for so long goes back.
IDLE_SECONDS = 20.0


Ask = Callable[[LeaseRequest], Awaitable[LeaseReply]]


@dataclass(slots=True, kw_only=True)
class _Held:
    """One lease. What is on its way to the teacher is held back until its price is known."""

    lease_id: str
    calls: int
    money: float
    expires_at: float
    spent_calls: int = 0
    spent_money: float = 0.0
    held_money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The right to one call."""

    money: float
    held: _Held


class Lease:
    """Used by one event loop. An expired lease stops escalating, never answering."""

    def __init__(
        self,
        ask: Ask,
        metrics: GatewayMetrics,
        *,
        gateway: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._metrics = metrics
        self._gateway = gateway
        self._clock = clock
        self._held: _Held | None = None
        self._wanted_at = float("-inf")
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._silent = False  # the learner does not answer

    async def reserve(self, money: float) -> Reservation | None:
        """The right to one call that costs at most `money`, or None."""
        self._wanted_at = self._clock()
        if reservation := self._take(money):
            return reservation
        if self._asking is None and self._clock() - self._asked_at < RENEW_SECONDS:
            return None  # the learner has just said no, or nothing
        await asyncio.wait([self._renewal()], timeout=PATIENCE_SECONDS)
        return self._take(money)

    def settle(self, reservation: Reservation, money: float) -> None:
        """The call is over and cost `money`."""
        held = reservation.held
        held.held_money -= reservation.money
        held.spent_money += money

    async def run(self) -> None:
        """Extend the lease while escalations are wanted; give it back when they are not."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if self._clock() - self._wanted_at < IDLE_SECONDS:
                await self._renewal()
            elif self._held is not None:
                await self.release()

    async def release(self) -> None:
        """Give back what is left, unless calls are still on their way."""
        held = self._held
        if held is None or held.held_money > 0:
            return
        self._held = None
        self._metrics.lease_calls.set(0)
        try:
            await self._ask(self._request(held, release=True))
        except FlywheelError:
            log.info("lease_not_returned", gateway=self._gateway)

    def _take(self, money: float) -> Reservation | None:
        held = self._held
        if held is None or self._clock() >= held.expires_at:
            self._metrics.lease_calls.set(0)
            return None
        left = held.money - held.spent_money - held.held_money
        if held.spent_calls >= held.calls or money > left:
            return None
        held.spent_calls += 1
        held.held_money += money
        self._metrics.lease_calls.set(held.calls - held.spent_calls)
        return Reservation(money=money, held=held)

    def _renewal(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = asyncio.create_task(self._renew())
        return self._asking

    async def _renew(self) -> None:
        asked_at = self._asked_at = self._clock()
        try:
            reply = await self._ask(self._request(self._held))
        except FlywheelError as error:
            if not self._silent:
                log.warning("lease_not_renewed", error=str(error))
            self._silent = True
        else:
            self._silent = False
            self._accept(reply, asked_at)
        finally:
            self._asking = None

    def _accept(self, reply: LeaseReply, asked_at: float) -> None:
        # Counted from before the question, so that ours ends before the learner's.
        expires_at = asked_at + reply.seconds
        held = self._held
        if reply.lease_id is None:
            self._held = None
        elif held is not None and held.lease_id == reply.lease_id:
            held.calls, held.money, held.expires_at = reply.calls, reply.money, expires_at
        else:
            self._held = _Held(
                lease_id=reply.lease_id,
                calls=reply.calls,
                money=reply.money,
                expires_at=expires_at,
            )
        held = self._held
        self._metrics.lease_calls.set(held.calls - held.spent_calls if held else 0)

    def _request(self, held: _Held | None, *, release: bool = False) -> LeaseRequest:
        if held is None:
            return LeaseRequest(gateway=self._gateway)
        return LeaseRequest(
            gateway=self._gateway,
            lease_id=held.lease_id,
            spent_calls=held.spent_calls,
            spent_money=held.spent_money,
            release=release,
        )
