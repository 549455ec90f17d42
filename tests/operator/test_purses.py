"""Which share of the label budget is spent, what stands still then, and which setting ends it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_samples import make_event
from operating import TASK, Desk, open_desk

from pipelines.identities import prompt_version
from pipelines.rates import Purse
from pipelines.types import Draws, Label, LabelSource, Message, Sample, SampleReason, Side
from service.operator.status import Need
from service.purses import emptied, left_in_purses
from storage.labels import add_labels
from storage.ledger import Amounts
from storage.samples import add_samples
from storage.votes import BLIND, Vote, add_votes

REASONS: dict[Purse, SampleReason] = {
    "audit": SampleReason.AUDIT,
    "held_out": SampleReason.HELD_OUT,
    "learning": SampleReason.UNCERTAIN,
    "repeat": SampleReason.HELD_OUT,
}
GRANTED: dict[Purse, int] = {"audit": 8, "held_out": 8, "repeat": 2, "learning": 22}
STANDS: dict[Purse, str] = {
    "audit": "broken promise",
    "held_out": "No student is judged",
    "repeat": "agrees with itself",
    "learning": "next student",
}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    budget = {"label_calls": 40, "label_tokens": 5_000_000, "label_money": 0.5}
    with open_desk(tmp_path, budget=budget) as opened:
        yield opened


def sampled(desk: Desk, event_id: str, reason: SampleReason) -> None:
    held_out = reason is SampleReason.HELD_OUT
    sample = Sample(
        event=make_event(event_id, occurred_at=desk.clock(), messages=(Message("user", event_id),)),
        text=event_id,
        reason=reason,
        draws=Draws(held_out=1.0) if held_out else Draws(),
        group_id=event_id,
        side=Side.HELD_OUT if held_out else Side.TRAINING,
        assessment=None,
        policy_version="p",
    )
    with desk.database.transaction() as tx:
        add_samples(tx, [sample], desk.clock())


def labelled(desk: Desk, event_id: str, reason: SampleReason, source: LabelSource) -> None:
    sampled(desk, event_id, reason)
    task = desk.settings.task_of(TASK)
    label = Label(
        event_id=event_id,
        label="refund",
        source=source,
        teacher_model="scripted-teacher",
        prompt_version=prompt_version(task),
        terms="scripted",
        prompt_tokens=100 if source == "bought" else 0,
        cost=0.01 if source == "bought" else 0.0,
        ledger_key=event_id if source == "bought" else None,
    )
    with desk.database.transaction() as tx:
        add_labels(tx, TASK, [label], desk.clock())
    if source == "bought":
        paid(desk, event_id)


def paid(desk: Desk, key: str) -> None:
    amounts, now = Amounts(tokens=100, money=0.01), desk.clock()
    desk.ledger.intend(key, event_id=key, request=b"{}", reserve=amounts, now=now)
    desk.ledger.receive(key, reply=b"{}", spent=amounts, now=now)


def asked_again(desk: Desk, event_id: str) -> None:
    vote = Vote(
        event_id=event_id,
        repeat=BLIND,
        first="refund",
        label="refund",
        prompt_version=prompt_version(desk.settings.task_of(TASK)),
        tokens=100,
        cost=0.01,
        ledger_key=f"again-{event_id}",
    )
    with desk.database.transaction() as tx:
        add_votes(tx, TASK, [vote], desk.clock())
    paid(desk, f"again-{event_id}")


def spend(desk: Desk, purse: Purse) -> None:
    """All that the purse has today."""
    for number in range(GRANTED[purse]):
        if purse == "repeat":
            labelled(desk, f"first-{number}", SampleReason.HELD_OUT, "given")
            asked_again(desk, f"first-{number}")
        else:
            labelled(desk, f"bought-{number}", REASONS[purse], "bought")


def let_wait(desk: Desk, purse: Purse, count: int) -> None:
    for number in range(count):
        if purse == "repeat":
            labelled(desk, f"waits-{number}", SampleReason.HELD_OUT, "given")
        else:
            sampled(desk, f"waits-{number}", REASONS[purse])


def told(desk: Desk) -> list[Need]:
    desk.operations.note_change()
    return [one for one in desk.operations.status().needs if one.kind == "budget"]


@pytest.mark.parametrize("purse", GRANTED)
def test_an_empty_purse_is_named_with_what_stands_still_and_what_would_end_it(
    desk: Desk, purse: Purse
) -> None:
    spend(desk, purse)
    assert told(desk) == [], "nothing waits for it"
    let_wait(desk, purse, 30)
    (need,) = told(desk)
    assert purse in need.name
    assert "30" in need.title
    assert STANDS[purse] in need.text
    assert need.told is (purse in ("audit", "held_out")), "the promise is told outside"
    named = {
        name: float(value) for name, value in re.findall(r"budget\.(\w+) = ([\d.]+)", need.text)
    }
    assert named.keys() >= {"label_calls"}
    assert pays(desk, purse, named) >= 30, "with these, all that waits is paid today"
    less = {**named, "label_calls": 0.9 * named["label_calls"]}
    assert pays(desk, purse, less) < 30, "and it is not far more than that takes"


def pays(desk: Desk, purse: Purse, named: dict[str, float]) -> int:
    """What the purse would pay for if the settings were these."""
    budget = desk.settings.budget.model_copy(update=named)
    with desk.database.snapshot() as tx:
        return left_in_purses(tx, desk.ledger, budget, desk.clock())[purse]


def test_money_that_runs_out_first_is_named(desk: Desk) -> None:
    """Labels at .01 each: half a unit pays for fifty, of which an audit's share is ten."""
    budget = desk.settings.budget.model_copy(update={"label_calls": 10_000})
    for number in range(10):
        labelled(desk, f"bought-{number}", SampleReason.AUDIT, "bought")
    let_wait(desk, "audit", 5)
    with desk.database.snapshot() as tx:
        settings = desk.settings.model_copy(update={"budget": budget})
        (found,) = emptied(tx, desk.ledger, settings, desk.clock())
    assert (found.purse, found.waiting) == ("audit", 5)
    assert found.enough == {"label_money": pytest.approx(0.75)}


def test_a_purse_that_pays_for_what_waits_is_no_need(desk: Desk) -> None:
    let_wait(desk, "audit", 3)
    labelled(desk, "bought", SampleReason.AUDIT, "bought")
    assert told(desk) == []


def test_who_grants_nothing_wants_nothing(tmp_path: Path) -> None:
    with open_desk(tmp_path, budget={"label_calls": 0}) as desk:
        let_wait(desk, "audit", 3)
        assert told(desk) == []


def test_the_empty_purse_is_over_at_midnight(desk: Desk) -> None:
    spend(desk, "audit")
    let_wait(desk, "audit", 3)
    assert len(told(desk)) == 1
    desk.clock.at = desk.clock.at.replace(day=2, hour=0, minute=0)
    assert told(desk) == []
