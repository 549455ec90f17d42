"""Grants escalation leases to gateways, so that together they cannot overspend the day."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import structlog

from service.planes import LeaseReply, LeaseRequest
from service.sections import BudgetSettings
from storage.database import Cursor, Database
from storage.leases import Lease, Spend, bound_spend, get_lease, put_lease, reported_spend

log = structlog.get_logger()


class LeaseBook:
    """Extends leases and settles them. Stored before it is told.

    A lease grows as its gateway reports what it spent, so that calls on their way are always
    covered. What a vanished gateway held counts as spent until the day (UTC) is over: nobody
    can know. It comes back when that gateway reports again, or gives the lease back.
    """

    def __init__(
        self, database: Database, budget: BudgetSettings, *, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._budget = budget
        self._now = now

    def renew(self, request: LeaseRequest) -> LeaseReply:
        """Take the report, and say what may be spent from here on."""
        now = self._now().astimezone(UTC)
        with self._database.transaction() as tx:
            lease = self._find(tx, request, now)
            if request.release:
                self._settle(tx, lease, request)
                return LeaseReply()
            extended = self._extend(tx, lease or self._new(request.gateway, now), request, now)
            put_lease(tx, extended)
        return LeaseReply(
            lease_id=extended.lease_id,
            calls=extended.calls,
            money=extended.money,
            seconds=self._budget.lease.total_seconds(),
        )

    def spent(self) -> Spend:
        """What gateways report to have spent today."""
        with self._database.snapshot() as cursor:
            return reported_spend(cursor, self._now().astimezone(UTC).date())

    def _find(self, tx: Cursor, request: LeaseRequest, now: datetime) -> Lease | None:
        """The gateway's own lease of today, if it names one that is not closed."""
        lease = get_lease(tx, request.lease_id) if request.lease_id else None
        if lease is None or lease.gateway != request.gateway or lease.settled:
            return None
        return lease if lease.day == now.date() else None

    def _settle(self, tx: Cursor, lease: Lease | None, request: LeaseRequest) -> None:
        if lease is not None:
            put_lease(tx, replace(_reported(lease, request), settled=True))

    def _new(self, gateway: str, now: datetime) -> Lease:
        return Lease(
            lease_id=uuid4().hex,
            gateway=gateway,
            day=now.date(),
            granted_at=now,
            expires_at=now,
            calls=0,
            money=0.0,
        )

    def _extend(self, tx: Cursor, lease: Lease, request: LeaseRequest, now: datetime) -> Lease:
        budget = self._budget
        if lease.lease_id == request.lease_id:
            lease = _reported(lease, request)
        others = bound_spend(tx, lease.day, but=lease.lease_id)
        free_calls = max(0, budget.escalation_calls - others.calls - lease.spent_calls)
        free_money = max(0.0, budget.escalation_money - others.money - lease.spent_money)
        share = min(1.0, budget.lease_calls / max(1, budget.escalation_calls))
        calls = lease.spent_calls + min(budget.lease_calls, free_calls)
        money = lease.spent_money + min(budget.escalation_money * share, free_money)
        if calls == lease.spent_calls:
            log.warning("escalation_stopped", reason="the day's calls are spent or leased out")
        return replace(
            lease,
            # Never less than before: our last answer may have arrived and be in use.
            calls=max(lease.calls, calls),
            money=max(lease.money, money),
            expires_at=now + budget.lease,
        )


def _reported(lease: Lease, request: LeaseRequest) -> Lease:
    """What is spent only grows, whatever order reports arrive in."""
    return replace(
        lease,
        spent_calls=max(lease.spent_calls, request.spent_calls),
        spent_money=max(lease.spent_money, request.spent_money),
    )
