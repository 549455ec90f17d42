"""Escalation leases: together gateways cannot overspend the day, whatever dies when."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pipelines.errors import NotRunning
from service.gateway.lease import Lease
from service.learner.leases import LeaseBook
from service.metrics.gateway import GatewayMetrics
from service.planes import LeaseReply, LeaseRequest
from service.sections import BudgetSettings
from storage.database import Database
from storage.leases import bound_spend
from storage.migrate import migrate

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "learner.duckdb")
    migrate(opened)
    yield opened
    opened.close()


def budget(calls: int = 100, money: float = 10.0, lease_calls: int = 40) -> BudgetSettings:
    return BudgetSettings(escalation_calls=calls, escalation_money=money, lease_calls=lease_calls)


def bound(database: Database, clock: Clock) -> int:
    with database.snapshot() as cursor:
        return bound_spend(cursor, clock.now.date()).calls


def ask(
    book: LeaseBook, gateway: str, reply: LeaseReply | None = None, *, spent_calls: int = 0
) -> LeaseReply:
    lease_id = reply.lease_id if reply else None
    return book.renew(LeaseRequest(gateway=gateway, lease_id=lease_id, spent_calls=spent_calls))


def test_leases_together_never_exceed_the_budget(database: Database) -> None:
    clock = Clock()
    book = LeaseBook(database, budget(), now=clock)
    granted = [ask(book, f"g{n}").calls for n in range(4)]
    assert granted == [40, 40, 20, 0]
    assert bound(database, clock) == 100


def test_a_lease_grows_with_what_is_reported_and_ends_with_the_budget(database: Database) -> None:
    clock = Clock()
    book = LeaseBook(database, budget(), now=clock)
    reply = ask(book, "g")
    for spent in (10, 40, 70, 100):
        reply = ask(book, "g", reply, spent_calls=spent)
        assert reply.calls == min(100, spent + 40)
    assert book.spent().calls == 100


def test_a_returned_lease_frees_its_rest_and_a_vanished_one_does_not(database: Database) -> None:
    clock = Clock()
    book = LeaseBook(database, budget(), now=clock)
    first = ask(book, "tidy")
    ask(book, "vanished")
    book.renew(LeaseRequest(gateway="tidy", lease_id=first.lease_id, spent_calls=5, release=True))
    clock.now += timedelta(hours=5)  # both have long expired
    assert bound(database, clock) == 5 + 40
    granted = [ask(book, f"g{n}").calls for n in range(3)]
    assert sum(granted) == 55
    clock.now += timedelta(days=1)
    assert ask(book, "next day").calls == 40


def test_a_gateway_that_comes_back_after_its_lease_expired_settles_it(database: Database) -> None:
    clock = Clock()
    book = LeaseBook(database, budget(lease_calls=100), now=clock)
    reply = ask(book, "g")
    clock.now += timedelta(hours=1)
    assert ask(book, "other").calls == 0
    book.renew(LeaseRequest(gateway="g", lease_id=reply.lease_id, spent_calls=30, release=True))
    assert ask(book, "other").calls == 70


def test_leases_survive_a_restart_of_the_learner(tmp_path: Path) -> None:
    for expected in (40, 40, 20, 0):
        opened = Database(tmp_path / "learner.duckdb")
        migrate(opened)
        book = LeaseBook(opened, budget(), now=Clock())
        assert ask(book, f"g{expected}-{Random().random()}").calls == expected
        opened.close()


def test_nobody_extends_or_settles_anothers_lease(database: Database) -> None:
    book = LeaseBook(database, budget(lease_calls=100), now=Clock())
    mine = ask(book, "mine")
    stolen = book.renew(LeaseRequest(gateway="thief", lease_id=mine.lease_id, release=True))
    assert stolen.lease_id is None
    assert ask(book, "thief").calls == 0


def test_money_bounds_leases_too(database: Database) -> None:
    book = LeaseBook(database, budget(calls=100, money=1.0, lease_calls=40), now=Clock())
    assert [round(ask(book, f"g{n}").money, 6) for n in range(4)] == [0.4, 0.4, 0.2, 0.0]


def test_a_report_above_the_grant_is_believed(database: Database) -> None:
    book = LeaseBook(database, budget(), now=Clock())
    reply = ask(book, "g")
    ask(book, "g", reply, spent_calls=95)
    assert ask(book, "other").calls == 0
    assert book.spent().calls == 95


def test_gateways_racing_for_the_budget_get_no_more_than_it(database: Database) -> None:
    clock = Clock()
    book = LeaseBook(database, budget(calls=1000, lease_calls=30), now=clock)
    spent = {f"g{n}": 0 for n in range(8)}
    lock = threading.Lock()

    def gateway(name: str) -> None:
        dice, reply = Random(name), LeaseReply()
        for _ in range(20):
            reply = ask(book, name, reply, spent_calls=spent[name])
            with lock:
                spent[name] += dice.randint(0, reply.calls - spent[name])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(gateway, spent))
    assert sum(spent.values()) <= 1000
    assert bound(database, clock) <= 1000


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "spend", "crash", "release", "lost reply", "restart"]),
            st.integers(0, 2),
            st.integers(0, 50),
        ),
        max_size=30,
    )
)
def test_no_order_of_crashes_and_lost_replies_overspends(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    database = Database(tmp_path_factory.mktemp("lease") / "learner.duckdb")
    migrate(database)
    book = LeaseBook(database, budget(calls=60, lease_calls=25), now=Clock())
    held: dict[int, tuple[str, LeaseReply, int]] = {}
    total, born = 0, 0
    for step, who, amount in steps:
        if who not in held:
            born += 1
            held[who] = (f"g{born}", LeaseReply(), 0)
        name, reply, spent = held[who]
        if step in ("ask", "lost reply"):
            answered = ask(book, name, reply, spent_calls=spent)
            if step == "ask":
                fresh = answered.lease_id != reply.lease_id
                held[who] = (name, answered, 0 if fresh else spent)
        elif step == "spend":
            more = min(amount, reply.calls - spent)
            total += more
            held[who] = (name, reply, spent + more)
        elif step == "crash":
            del held[who]
        elif step == "release":
            book.renew(
                LeaseRequest(gateway=name, lease_id=reply.lease_id, spent_calls=spent, release=True)
            )
            del held[who]
        else:
            book = LeaseBook(database, budget(calls=60, lease_calls=25), now=Clock())
        assert total <= 60
    database.close()


class Learner:
    """Answers a gateway's lease, or is dead."""

    def __init__(self, calls: int = 3, money: float = 1.0, seconds: float = 30.0) -> None:
        self.calls, self.money, self.seconds = calls, money, seconds
        self.dead = False
        self.requests: list[LeaseRequest] = []

    async def __call__(self, request: LeaseRequest) -> LeaseReply:
        self.requests.append(request)
        if self.dead:
            raise NotRunning("no learner answers")
        return LeaseReply(lease_id="one", calls=self.calls, money=self.money, seconds=self.seconds)


def test_the_gateway_spends_its_lease_and_no_more() -> None:
    async def story() -> None:
        learner = Learner(calls=3)
        lease = Lease(learner, GatewayMetrics(CollectorRegistry()), gateway="g")
        reserved = [await lease.reserve(0.1) for _ in range(5)]
        assert [item is not None for item in reserved] == [True, True, True, False, False]
        assert len(learner.requests) == 1  # it does not ask again for each refusal

    asyncio.run(story())


def test_money_on_its_way_is_held_until_its_price_is_known() -> None:
    async def story() -> None:
        lease = Lease(Learner(calls=9, money=1.0), GatewayMetrics(CollectorRegistry()), gateway="g")
        first = await lease.reserve(0.9)
        assert first is not None
        assert await lease.reserve(0.2) is None
        lease.settle(first, 0.1)
        assert await lease.reserve(0.2) is not None

    asyncio.run(story())


def test_an_expired_lease_stops_escalating_and_a_dead_learner_costs_little_time() -> None:
    async def story() -> None:
        learner, now = Learner(calls=9), [0.0]
        lease = Lease(
            learner, GatewayMetrics(CollectorRegistry()), gateway="g", clock=lambda: now[0]
        )
        assert await lease.reserve(0.0) is not None
        learner.dead = True
        now[0] = 29.0
        assert await lease.reserve(0.0) is not None
        now[0] = 31.0
        assert await lease.reserve(0.0) is None
        learner.dead = False
        now[0] = 33.0
        assert await lease.reserve(0.0) is not None
        assert learner.requests[-1].spent_calls == 2

    asyncio.run(story())
