"""Escalation leases: what each gateway may spend of the day's budget. All SQL about them."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple

from storage.database import Cursor, first_row, from_db_time, to_db_time

COLUMNS = (
    "lease_id, gateway, day, granted_at, expires_at, "
    "calls, money, spent_calls, spent_money, settled"
)

SELECT_LEASE = f"SELECT {COLUMNS} FROM leases WHERE lease_id = $lease_id"

PUT_LEASE = f"""
INSERT INTO leases ({COLUMNS})
VALUES ($lease_id, $gateway, $day, $granted_at, $expires_at,
        $calls, $money, $spent_calls, $spent_money, $settled)
ON CONFLICT (lease_id) DO UPDATE SET
    expires_at = excluded.expires_at, calls = excluded.calls, money = excluded.money,
    spent_calls = excluded.spent_calls, spent_money = excluded.spent_money,
    settled = excluded.settled
"""

# A lease that is not settled may have been spent to its end, whether or not it has expired.
SELECT_BOUND = """
SELECT
    coalesce(sum(CASE WHEN settled THEN spent_calls ELSE greatest(calls, spent_calls) END), 0),
    coalesce(sum(CASE WHEN settled THEN spent_money ELSE greatest(money, spent_money) END), 0)
FROM leases
WHERE day = $day AND lease_id <> $but
"""

SELECT_SPENT = """
SELECT coalesce(sum(spent_calls), 0), coalesce(sum(spent_money), 0) FROM leases WHERE day = $day
"""

DELETE_BEFORE = "DELETE FROM leases WHERE day < $day"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One grant. `calls` and `money` are what may be spent under it in all."""

    lease_id: str
    gateway: str
    day: date
    granted_at: datetime
    expires_at: datetime
    calls: int
    money: float
    spent_calls: int = 0
    spent_money: float = 0.0
    settled: bool = False  # its spend is final, the rest went back


class Spend(NamedTuple):
    """Calls and money."""

    calls: int
    money: float


def get_lease(cursor: Cursor, lease_id: str) -> Lease | None:
    row = first_row(cursor.execute(SELECT_LEASE, {"lease_id": lease_id}))
    if row is None:
        return None
    found, gateway, day, granted_at, expires_at, calls, money, spent, spent_money, settled = row
    return Lease(
        lease_id=found,
        gateway=gateway,
        day=day,
        granted_at=from_db_time(granted_at),
        expires_at=from_db_time(expires_at),
        calls=calls,
        money=money,
        spent_calls=spent,
        spent_money=spent_money,
        settled=settled,
    )


def put_lease(cursor: Cursor, lease: Lease) -> None:
    """Store a lease, or what has changed of it."""
    cursor.execute(
        PUT_LEASE,
        {
            "lease_id": lease.lease_id,
            "gateway": lease.gateway,
            "day": lease.day,
            "granted_at": to_db_time(lease.granted_at),
            "expires_at": to_db_time(lease.expires_at),
            "calls": lease.calls,
            "money": lease.money,
            "spent_calls": lease.spent_calls,
            "spent_money": lease.spent_money,
            "settled": lease.settled,
        },
    )


def bound_spend(cursor: Cursor, day: date, *, but: str = "") -> Spend:
    """The most that may have been spent on a day, in all leases `but` one."""
    calls, money = cursor.execute(SELECT_BOUND, {"day": day, "but": but}).fetchall()[0]
    return Spend(int(calls), float(money))


def reported_spend(cursor: Cursor, day: date) -> Spend:
    """What gateways say they have spent on a day."""
    calls, money = cursor.execute(SELECT_SPENT, {"day": day}).fetchall()[0]
    return Spend(int(calls), float(money))


def delete_leases_before(cursor: Cursor, day: date) -> None:
    """Forget the leases of former days."""
    cursor.execute(DELETE_BEFORE, {"day": day})
