"""The teacher is asked the same again on purpose: that measures it, and settles doubts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from learner_rig import Bench, Scripted, open_bench, open_rig, scripted_teacher

from pipelines.ask import ask
from pipelines.identities import prompt_version
from pipelines.types import Draws, Label, Message, SampleReason, Side, StudentAnswer
from service.learner.ceiling import ceiling_of, with_teacher
from service.learner.repeats import Repeats
from service.learner.teacher_failures import BREAKER_MAX_SECONDS
from service.operator.status import Figures
from service.purses import ASKED_TWICE
from storage.labels import add_labels, labelled_samples, spend_since
from storage.votes import parked, votes_since

LABELS = ("refund", "delivery", "cancel")
COUNT = 400
TEXTS = [f"message number {number} about it" for number in range(COUNT)]
ANSWERS = {text: LABELS[number % 3] for number, text in enumerate(TEXTS)}


@dataclass
class Asking:
    bench: Bench
    teacher: Scripted
    repeats: Repeats

    def labelled(self, number: int, label: str | None = None, **about: Any) -> str:
        """A sample with the teacher's label, or with another that it has given."""
        rig, event_id = self.bench.rig, f"e-{number}"
        rig.sample(event_id, TEXTS[number], **about)
        made = Label(
            event_id=event_id,
            label=label or ANSWERS[TEXTS[number]],
            source="bought",
            teacher_model="scripted-teacher",
            prompt_version=prompt_version(rig.task),
            terms="scripted",
        )
        with rig.database.transaction() as tx:
            add_labels(tx, rig.task.name, [made], rig.now())
        return event_id

    def held_out(self, number: int, label: str | None = None) -> str:
        draws = Draws(held_out=1.0)
        return self.labelled(
            number, label, reason=SampleReason.HELD_OUT, side=Side.HELD_OUT, draws=draws
        )

    def doubted(self, number: int, label: str | None = None) -> str:
        """Training data whose label is not what a student has said."""
        other = next(one for one in LABELS if one != (label or ANSWERS[TEXTS[number]]))
        said = StudentAnswer(label=other, confidence=0.9, version="support-v1-aaaaaaaa")
        return self.labelled(number, label, student=said)

    def trains(self) -> set[str]:
        rig = self.bench.rig
        with rig.database.snapshot() as tx:
            found = labelled_samples(tx, rig.task.name, rig.task.labels, rig.now())
        return {one.example.event_id for one in found}


@contextmanager
def open_asking(
    folder: Path, now: Callable[[], datetime] | None = None, **sections: Any
) -> Iterator[Asking]:
    (folder / "teacher").mkdir()
    with (
        scripted_teacher(folder / "teacher", ANSWERS) as teacher,
        open_rig(folder / "data", **sections) as rig,
        ExitStack() as stack,
    ):
        rig.now = now or rig.now
        bench = stack.enter_context(open_bench(rig, base_url=teacher.url))
        repeats = Repeats(
            database=rig.database,
            ledger=bench.ledger,
            teacher=bench.teacher,
            tasks={rig.task.name: rig.task},
            budget=rig.settings.budget,
            now=rig.now,
            stop=Event(),
        )
        yield Asking(bench, teacher, repeats)


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    with open_asking(tmp_path) as made:
        yield made


def test_a_hundred_held_out_prompts_are_asked_twice_and_no_more(asking: Asking) -> None:
    for number in range(ASKED_TWICE + 30):
        asking.held_out(number)
    asking.labelled(200, reason=SampleReason.AUDIT, draws=Draws(audit=0.01))
    result = asking.repeats.run()
    assert (result.outcome, len(asking.teacher.bills())) == ("done", ASKED_TWICE)
    assert asking.repeats.run().outcome == "nothing"
    assert len(asking.teacher.bills()) <= ASKED_TWICE + 1  # of audits, one in fifty


def test_of_audits_one_in_fifty_is_asked_again_the_same_ones_at_every_look(
    tmp_path: Path,
) -> None:
    with open_asking(tmp_path, budget={"label_calls": 20_000}) as asking:
        for number in range(ASKED_TWICE):
            asking.held_out(number)
        asking.repeats.run()
        for number in range(ASKED_TWICE, COUNT):
            asking.labelled(number, reason=SampleReason.AUDIT, draws=Draws(audit=0.01))
        asking.repeats.run()
        again = len(asking.teacher.bills()) - ASKED_TWICE
        assert 1 <= again <= 20, "six of three hundred are expected"
        asking.repeats.run()
        assert len(asking.teacher.bills()) == ASKED_TWICE + again


def test_the_ceiling_is_how_often_the_teacher_says_the_same(asking: Asking) -> None:
    for number in range(ASKED_TWICE):
        label = LABELS[(number + 1) % 3] if number < 8 else None  # it said something else before
        asking.held_out(number, label)
    asking.repeats.run()
    rig = asking.bench.rig
    with rig.database.snapshot() as tx:
        found = ceiling_of(tx, rig.task)
    assert found is not None
    assert (found.value, found.n) == (0.92, 100)
    assert found.low < 0.87
    assert found.high > 0.96


def test_equal_prompts_are_one_pair_of_answers(asking: Asking) -> None:
    for number in range(5):
        asking.held_out(number)
    rig = asking.bench.rig
    for number in range(20):  # what everybody asks
        event_id = f"again-{number}"
        rig.sample(event_id, TEXTS[0], side=Side.HELD_OUT, draws=Draws(held_out=1.0))
        with rig.database.transaction() as tx:
            tx.execute(
                "INSERT INTO labels SELECT ?, * EXCLUDE (event_id) FROM labels "
                "WHERE event_id = 'e-0'",
                [event_id],
            )
            tx.execute("UPDATE samples SET status = 'labelled' WHERE event_id = ?", [event_id])
    asking.repeats.run()
    midnight = rig.now().replace(hour=0, minute=0, second=0, microsecond=0)
    with rig.database.snapshot() as tx:
        found = ceiling_of(tx, rig.task)
        assert votes_since(tx, "support", midnight) == 5
    assert len(asking.teacher.bills()) == 5
    assert found is not None
    assert found.n == 5


def test_an_answer_outside_the_label_set_is_not_the_same(asking: Asking) -> None:
    for number in range(10):
        asking.held_out(number)
    asking.teacher.behave(nonsense_rate=1.0)
    asking.repeats.run()
    rig = asking.bench.rig
    with rig.database.snapshot() as tx:
        found = ceiling_of(tx, rig.task)
    assert found is not None
    assert found.value == 0.0


def test_asking_again_has_its_own_purse_and_its_price_is_counted(tmp_path: Path) -> None:
    with open_asking(tmp_path, budget={"label_calls": 200}) as asking:
        for number in range(50):
            asking.held_out(number)
        asking.repeats.run()
        assert len(asking.teacher.bills()) == 10, "a twentieth of 200"
        asking.repeats.run()
        assert len(asking.teacher.bills()) == 10
        assert asking.repeats.waiting("support") == 0, "today cannot pay for more"
        rig = asking.bench.rig
        midnight = rig.now().replace(hour=0, minute=0, second=0, microsecond=0)
        with rig.database.snapshot() as tx:
            spent = spend_since(tx, "support", midnight)
        assert spent.calls == 60
        assert spent.money == pytest.approx(asking.bench.ledger.spent_on(rig.now()).money)


def test_a_repeat_has_a_key_of_its_own_and_the_first_keeps_its(asking: Asking) -> None:
    rig, policy = asking.bench.rig, asking.bench.teacher.policy
    first, again = (
        ask("e-0", (Message("user", TEXTS[0]),), rig.task, policy, repeat) for repeat in (0, 1)
    )
    assert first == ask("e-0", (Message("user", TEXTS[0]),), rig.task, policy)
    assert first.key != again.key
    assert first.parameters == again.parameters


def test_a_repeat_is_paid_once_whatever_happens(asking: Asking) -> None:
    event_id = asking.held_out(0)
    asking.repeats.run()
    with asking.bench.rig.database.transaction() as tx:
        tx.execute("DELETE FROM votes")  # as after a crash between the answer and the row
    asking.repeats.run()
    assert len(asking.teacher.bills()) == 1
    assert asking.bench.rig.rows("SELECT event_id, repeat, label FROM votes") == [
        (event_id, 1, ANSWERS[TEXTS[0]])
    ]


def test_a_doubted_label_that_is_confirmed_trains_on(asking: Asking) -> None:
    event_id = asking.doubted(0)
    asking.labelled(1)  # nobody doubts it, and nobody asks
    asking.repeats.run()
    assert len(asking.teacher.bills()) == 1
    assert asking.trains() == {event_id, "e-1"}


def test_a_tie_is_parked_until_a_person_decides(asking: Asking) -> None:
    wrong = LABELS[1]
    event_id = asking.doubted(0, wrong)
    assert ANSWERS[TEXTS[0]] != wrong
    asking.repeats.run()
    rig = asking.bench.rig
    assert asking.trains() == set()
    with rig.database.snapshot() as tx:
        (found,) = parked(tx, "support", 10)
        assert with_teacher(tx, rig.task, Figures()).parked == 1
    assert (found.event_id, found.first, found.second) == (event_id, wrong, ANSWERS[TEXTS[0]])
    rig.label(event_id, LABELS[2], source="correction")
    assert asking.trains() == {event_id}
    with rig.database.snapshot() as tx:
        assert parked(tx, "support", 10) == []


def test_evidence_keeps_its_first_answer_whatever_the_second_was(asking: Asking) -> None:
    """Only some were asked again: to change those alone would change what is measured."""
    event_id = asking.held_out(0, LABELS[1])
    asking.repeats.run()
    assert asking.trains() == {event_id}


def test_what_a_new_wording_is_answered_is_not_compared_with_the_old(asking: Asking) -> None:
    rig = asking.bench.rig
    rig.sample("old", TEXTS[0], side=Side.HELD_OUT, draws=Draws(held_out=1.0))
    rig.label("old", LABELS[1], source="bought")  # under another prompt version
    asking.repeats.run()
    assert asking.teacher.bills() == []
    with rig.database.snapshot() as tx:
        assert ceiling_of(tx, replace(rig.task, instructions="Another wording.")) is None


def test_a_first_student_waits_for_what_can_be_asked_now(asking: Asking) -> None:
    for number in range(ASKED_TWICE + 20):
        asking.held_out(number)
    assert asking.repeats.waiting("support") == 0, "the job has never run: it may be paused"
    asking.repeats.run()
    with asking.bench.rig.database.transaction() as tx:
        tx.execute("DELETE FROM votes WHERE event_id < 'e-15'")
    assert asking.repeats.waiting("support") > 0
    asking.repeats.run()
    assert asking.repeats.waiting("support") == 0


def test_no_student_waits_for_a_teacher_that_fails(asking: Asking) -> None:
    for number in range(40):
        asking.held_out(number)
    asking.teacher.behave(rate_500=1.0)
    asking.repeats.run()
    assert asking.repeats.waiting("support") == 0
    assert asking.bench.rig.rows("SELECT * FROM votes") == []


def test_a_call_that_nobody_knows_of_holds_up_no_other(tmp_path: Path) -> None:
    at = [datetime(2026, 1, 5, 12, tzinfo=UTC)]
    with open_asking(tmp_path, lambda: at[0]) as asking:
        for number in range(ASKED_TWICE + 20):
            asking.held_out(number)
        asking.teacher.behave(rate_500=1.0)
        asking.repeats.run()
        assert 0 < len(asking.bench.ledger.unknown()) < 20
        asking.teacher.behave(rate_500=0.0)
        at[0] += timedelta(seconds=BREAKER_MAX_SECONDS)
        asking.repeats.run()
        assert asking.bench.rig.scalar("SELECT count(*) FROM votes") == ASKED_TWICE


def test_errors_are_told_by_segment_from_votes_and_from_people(asking: Asking) -> None:
    for number in range(60):
        asking.held_out(number, LABELS[(number + 1) % 3] if number < 6 else None)
    asking.repeats.run()
    rig = asking.bench.rig
    for number in range(30):
        rig.label(f"e-{number}", ANSWERS[TEXTS[number]], source="correction")
    with rig.database.snapshot() as tx:
        (found,) = with_teacher(tx, rig.task, Figures()).teacher_errors
    assert found.contradicts is not None
    assert found.corrected is not None
    assert found.contradicts.value == pytest.approx(0.1)
    assert found.contradicts.n == 60
    assert found.corrected.value == pytest.approx(0.2)
    assert found.corrected.n == 30
