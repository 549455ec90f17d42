"""A clock that jumps an hour either way: nothing is overspent, lost, or held up for as long."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ingest_rig import Producer, drain, make_ingest, record
from learner_rig import open_rig

from pipelines.trigger import Due, TriggerPolicy, TriggerState, is_retrain_due
from service.learner.leases import LeaseBook
from service.learner.retention import ARTIFACTS_KEPT
from service.planes import LeaseRequest
from service.sections import BudgetSettings
from storage.database import Database
from storage.leases import bound_spend
from storage.migrate import migrate

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

either_way = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "learner.duckdb")
    migrate(opened)
    yield opened
    opened.close()


@either_way
def test_leases_stay_within_the_budget(jump: timedelta, database: Database) -> None:
    at = [NOON]
    budget = BudgetSettings(escalation_calls=100, escalation_money=10.0, lease_calls=40)
    book = LeaseBook(database, budget, now=lambda: at[0])
    replies = {name: book.renew(LeaseRequest(gateway=name)) for name in ("a", "b")}
    at[0] += jump
    for name, reply in replies.items():
        spent = LeaseRequest(gateway=name, lease_id=reply.lease_id, spent_calls=reply.calls)
        replies[name] = book.renew(spent)
    late = book.renew(LeaseRequest(gateway="c"))
    granted = sum(reply.calls for reply in (*replies.values(), late))
    assert 80 <= granted <= budget.escalation_calls
    with database.snapshot() as tx:
        assert bound_spend(tx, at[0].date()).calls <= budget.escalation_calls


def test_a_clock_put_back_does_not_hold_up_the_next_training() -> None:
    state = TriggerState(
        labels=2_000,
        held_out_groups=300,
        has_student=True,
        labels_at_last_training=1_000,
        since_last_training=timedelta(days=1),
        certified_coverage=0.82,
    )
    for since in (timedelta(days=1), -HOUR):
        now = dataclasses.replace(state, since_last_training=since)
        assert isinstance(is_retrain_due(now, TriggerPolicy()), Due)


def test_a_clock_put_forward_removes_no_artifact_that_a_job_has_in_its_hands() -> None:
    assert HOUR + timedelta(minutes=30) < ARTIFACTS_KEPT


@either_way
def test_events_are_counted_once_at_their_own_time(jump: timedelta, tmp_path: Path) -> None:
    producer = Producer(tmp_path)
    with open_rig(tmp_path) as rig:
        ingest = make_ingest(rig)
        for number, at in enumerate((NOON, NOON + jump, NOON)):
            producer.send(record(f"e-{number}", occurred_at=at))
            assert drain(ingest) == 1
        rows = dict(rig.rows("SELECT minute, sum(events) FROM traffic GROUP BY minute"))
    producer.close()
    moved = (NOON + jump).replace(tzinfo=None)
    assert rows == {NOON.replace(tzinfo=None): 2, moved: 1}
