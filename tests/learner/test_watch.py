"""The watch: its figures are what one gets by hand, and it starts a training when one is due."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from learner_rig import Rig, open_rig

from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bin
from pipelines.tally import Tally
from pipelines.types import Draws, Side, StudentAnswer
from service.learner.sampling import Sampling
from service.learner.watch import Watch
from service.operator.board import Board
from service.rules import first_policy
from storage.artifacts import Artifacts
from storage.decisions import record_decision
from storage.ledger import Ledger
from storage.live import LiveStudent, LiveTask
from storage.traffic import add_traffic

VERSION = "support-v1-abcdef01"
NOW = datetime(2026, 11, 23, 12, 30, 20, tzinfo=UTC)
CHAMPION = LiveStudent(
    name=VERSION,
    number=1,
    student="a" * 64,
    base="e" * 64,
    report="r" * 64,
    decision="d" * 64,
    threshold=0.9,
)


class Desk:
    """A watch over a rig whose clock stands still, with a champion since half an hour."""

    def __init__(self, rig: Rig, *, champion: bool = True) -> None:
        self.rig = rig
        self.started: list[tuple[str, str]] = []
        self.board = Board()
        if champion:
            self.board.live = {rig.task.name: LiveTask(champion=CHAMPION)}
        self.ledger = Ledger(rig.folder / "ledger")
        self.sampling = Sampling({rig.task.name: first_policy(rig.settings, b"salt")})
        self.watch = Watch(
            database=rig.database,
            artifacts=Artifacts(rig.folder / "artifacts"),
            ledger=self.ledger,
            settings=rig.settings,
            tasks={rig.task.name: rig.task},
            sampling=self.sampling,
            metrics=rig.metrics,
            board=self.board,
            start_training=lambda task, reason: self.started.append((task, reason)),
            now=lambda: NOW,
        )
        if champion:
            with rig.database.transaction() as tx:
                record_decision(
                    tx,
                    rig.folder / "decisions.jsonl",
                    task=rig.task.name,
                    action="approve",
                    student=CHAMPION.student,
                    report=CHAMPION.report,
                    operator="ada",
                    reason="",
                    now=NOW - timedelta(minutes=30),
                )

    def traffic(self, minutes_ago: int, confidences: list[float], served: int = 0) -> None:
        """Assessed events of one minute; the first `served` were answered by the student."""
        histogram = [0] * CONFIDENCE_BINS
        for confidence in confidences:
            histogram[confidence_bin(confidence)] += 1
        sums = Tally(
            events=len(confidences),
            assessed=len(confidences),
            served=served,
            teacher_served=len(confidences) - served,
            sum_f=sum(confidences),
            sum_f2=sum(value**2 for value in confidences),
            served_sum_f=sum(confidences[:served]),
            served_sum_f2=sum(value**2 for value in confidences[:served]),
            histogram=histogram,
        )
        minute = (NOW - timedelta(minutes=minutes_ago)).replace(second=0)
        with self.rig.database.transaction() as tx:
            add_traffic(tx, {(minute, self.rig.task.name, VERSION, "refund"): sums})

    def audit(
        self,
        event_id: str,
        confidence: float,
        *,
        says: str,
        truth: str | None,
        minutes_ago: int = 5,
    ) -> None:
        """An event that the audit draw chose, one in ten; `truth` None: no label came."""
        self.rig.sample(
            event_id,
            draws=Draws(audit=0.1),
            student=StudentAnswer(version=VERSION, label=says, confidence=confidence),
            served_by="student",
            at=NOW - timedelta(minutes=minutes_ago),
        )
        if truth is not None:
            self.rig.label(event_id, truth, at=NOW - timedelta(minutes=minutes_ago))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        yield opened


def test_trusted_coverage_is_the_share_at_or_above_the_threshold(rig: Rig) -> None:
    desk = Desk(rig)
    desk.traffic(1, [0.95] * 450 + [0.5] * 150)

    desk.watch.run()

    coverage = desk.board.figures(rig.task.name).trusted_coverage
    assert coverage is not None
    assert coverage.value == pytest.approx(0.75)
    assert coverage.low < 0.75 < coverage.high
    assert coverage.n == 600


def test_coverage_is_of_the_last_minutes_when_they_hold_enough(rig: Rig) -> None:
    desk = Desk(rig)
    desk.traffic(20, [0.95] * 5000)
    desk.traffic(1, [0.5] * 600)

    desk.watch.run()

    coverage = desk.board.figures(rig.task.name).trusted_coverage
    assert coverage is not None
    assert coverage.value == 0.0


def test_live_agreement_corrects_the_student_by_its_audits(rig: Rig) -> None:
    """400 events at f = .9; 40 audits at pi = .1, of which 30 agree: mean(phi) by hand."""
    desk = Desk(rig)
    desk.traffic(5, [0.9] * 400, served=400)
    for number in range(40):
        truth = "refund" if number < 30 else "cancel"
        desk.audit(f"e{number}", 0.9, says="refund", truth=truth)

    desk.watch.run()

    agreement = desk.board.figures(rig.task.name).agreement
    assert agreement is not None
    by_hand = 0.9 + (30 * (1 - 0.9) + 10 * (0 - 0.9)) / 0.1 / 400
    assert agreement.value == pytest.approx(by_hand)
    assert agreement.value == pytest.approx(0.75)
    assert agreement.n == 40


def test_what_came_before_the_promotion_does_not_count(rig: Rig) -> None:
    desk = Desk(rig)
    desk.traffic(45, [0.9] * 1000, served=1000)
    for number in range(50):
        desk.audit(f"old{number}", 0.9, says="refund", truth="cancel", minutes_ago=45)
    desk.traffic(5, [0.9] * 300, served=300)
    for number in range(30):
        desk.audit(f"new{number}", 0.9, says="refund", truth="refund")

    desk.watch.run()

    agreement = desk.board.figures(rig.task.name).agreement
    assert agreement is not None
    assert agreement.n == 30
    assert agreement.value == pytest.approx(0.9 + 30 * 0.1 / 0.1 / 300)


def test_audits_without_a_label_are_counted_not_guessed(rig: Rig) -> None:
    desk = Desk(rig)
    desk.traffic(5, [0.9] * 400, served=400)
    for number in range(40):
        desk.audit(f"e{number}", 0.9, says="refund", truth="refund" if number < 30 else None)

    desk.watch.run()

    registry = rig.metrics.registry
    task = {"task": rig.task.name}
    assert registry.get_sample_value("flywheel_audit_labels", task) == 30
    assert registry.get_sample_value("flywheel_audit_unanswered", task) == 10


def test_without_a_champion_there_is_no_quality_to_show(rig: Rig) -> None:
    desk = Desk(rig, champion=False)
    desk.watch.run()

    figures = desk.board.figures(rig.task.name)
    assert figures.trusted_coverage is None
    assert figures.agreement is None


def test_a_first_training_starts_when_there_are_labels_and_evidence(tmp_path: Path) -> None:
    with open_rig(
        tmp_path, trigger={"min_labels": 40}, gate={"min_groups": 30}, task={"target": 0.9}
    ) as rig:
        desk = Desk(rig, champion=False)
        for number in range(40):
            rig.sample(f"t{number}")
            rig.label(f"t{number}", "refund")
        result = desk.watch.run()
        assert desk.started == []
        assert "needs 87 held-out groups" in result.detail, "at 90 % three times 29"

        for number in range(87):
            rig.sample(f"h{number}", side=Side.HELD_OUT, draws=Draws(held_out=1.0))
            rig.label(f"h{number}", "refund")
        desk.watch.run()

        ((task, reason),) = desk.started
        assert task == rig.task.name
        assert "first student" in reason


def test_an_operators_wish_is_heeded_once(rig: Rig) -> None:
    desk = Desk(rig, champion=False)
    rig.sample("one")
    rig.label("one", "refund")
    desk.board.want_training(rig.task.name)

    desk.watch.run()
    desk.watch.run()

    assert len(desk.started) == 1


def test_draws_are_thinned_in_coarse_steps_to_what_the_budget_can_pay(tmp_path: Path) -> None:
    """Half a million events a day, all the student's; 1,000 calls a day, a fifth for audits."""
    with open_rig(
        tmp_path,
        budget={"label_calls": 1_000},
        sampling={"audit_rate": 0.01, "held_out_rate": 0.05},
    ) as rig:
        desk = Desk(rig)
        desk.traffic(5, [0.9] * 500_000, served=500_000)
        desk.watch.run()

        policy = desk.sampling.policy(rig.task.name)
        assert 500_000 * policy.audit_rate <= 200
        assert 500_000 / 5 * policy.held_out_rate <= 200
        assert math.log2(policy.audit_rate).is_integer(), "in coarse steps"


def test_history_is_kept_for_the_charts(rig: Rig) -> None:
    desk = Desk(rig)
    desk.traffic(1, [0.95] * 600)
    desk.watch.run()
    desk.watch.run()

    history = desk.board.figures(rig.task.name).history
    assert [point.coverage for point in history] == [1.0]
