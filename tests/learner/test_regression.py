"""A champion that is worse than the version before is found out, drift alone is no reason."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from learner_rig import Rig, open_rig

from pipelines.types import DecisionAction, Draws, StudentAnswer
from service.learner.assessor import Asked
from service.learner.regression import Regression
from service.planes import Role
from service.sections import RollbackSettings
from storage.decisions import record_decision
from storage.live import LiveStudent, LiveTask

NOW = datetime(2026, 11, 23, 12, 30, 20, tzinfo=UTC)
APPROVED = NOW - timedelta(hours=1)
BEFORE, CHAMPION = "support-v1-abcdef01", "support-v2-12345678"


def student(name: str) -> LiveStudent:
    return LiveStudent(
        name=name,
        number=1,
        student="a" * 64,
        base="e" * 64,
        report="c" * 64,
        decision="d" * 64,
        threshold=0.9,
    )


class Gateway:
    """Keeps the version before, which says what it is given to say."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.version = BEFORE
        self.asked: list[str] = []

    def assess(
        self, task: str, events: Sequence[Asked], role: Role = "champion"
    ) -> dict[str, StudentAnswer]:
        assert role == "previous"
        self.asked += [event.event_id for event in events]
        return {
            event.event_id: StudentAnswer(
                version=self.version, label=self.says[event.event_id], confidence=0.9
            )
            for event in events
            if event.event_id in self.says
        }


class Desk:
    """A champion since an hour, and the version before beside it."""

    def __init__(
        self, rig: Rig, *, previous: bool = True, action: DecisionAction = "approve"
    ) -> None:
        self.rig, self.gateway, self.audits = rig, Gateway(), 0
        self.live = LiveTask(
            champion=student(CHAMPION), previous=student(BEFORE) if previous else None
        )
        with rig.database.transaction() as tx:
            record_decision(
                tx,
                rig.folder / "decisions.jsonl",
                task=rig.task.name,
                action=action,
                student="a" * 64,
                report="c" * 64,
                operator="ada",
                reason="because",
                now=APPROVED,
            )
        self.regression = self.after_restart()

    def after_restart(self) -> Regression:
        return Regression(
            database=self.rig.database,
            settings=RollbackSettings(),
            answers=self.gateway,
            live=lambda task: self.live,
            metrics=self.rig.metrics,
        )

    def audit(self, *, before: bool, now: bool, labelled: bool = True, times: int = 1) -> None:
        """Audited events on which the two are right, or are not."""
        for _ in range(times):
            self.audits += 1
            name = f"e{self.audits}"
            at = APPROVED + timedelta(seconds=self.audits)
            self.rig.sample(
                name,
                draws=Draws(audit=0.1),
                student=StudentAnswer(
                    version=CHAMPION, label="refund" if now else "cancel", confidence=0.9
                ),
                served_by="student",
                at=at,
            )
            self.gateway.says[name] = "refund" if before else "cancel"
            if labelled:
                self.rig.label(name, "refund", at=at)

    def look(self) -> str | None:
        """Until nothing new is asked for."""
        while True:
            asked, reason = len(self.gateway.asked), self.regression.look(self.rig.task.name)
            if reason or len(self.gateway.asked) == asked:
                return reason


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        yield opened


def test_a_worse_champion_is_found_out_and_the_reason_says_the_numbers(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=True, now=True, times=150)
    desk.audit(before=True, now=False, times=30)
    desk.audit(before=False, now=True, times=4)

    reason = desk.look()

    assert reason is not None
    assert f"30 were right with {BEFORE} and are wrong with {CHAMPION}, 4 the other way" in reason
    assert "Of 184 audited prompts" in reason


def test_drift_that_is_as_hard_for_both_is_no_reason(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=False, now=False, times=200)
    desk.audit(before=True, now=False, times=6)
    desk.audit(before=False, now=True, times=6)
    assert desk.look() is None


def test_a_better_champion_stays(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=False, now=True, times=40)
    desk.audit(before=True, now=True, times=100)
    assert desk.look() is None


def test_each_audit_is_bet_on_once_and_asked_for_once(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=True, now=False, times=3)
    for _ in range(20):
        assert desk.regression.look(rig.task.name) is None
    assert desk.gateway.asked == ["e1", "e2", "e3"]


def test_what_waits_for_its_label_holds_back_what_came_after_it(rig: Rig) -> None:
    """Escalated events have their labels at once: by themselves they would speak for all."""
    desk = Desk(rig)
    desk.audit(before=True, now=True, labelled=False)
    desk.audit(before=True, now=False, times=40)
    assert desk.look() is None
    assert desk.gateway.asked == []

    rig.label("e1", "refund", at=NOW)

    assert desk.look() is not None


def test_evidence_is_there_again_after_a_restart(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=True, now=False, times=12)
    first = desk.look()
    desk.regression = desk.after_restart()
    assert first is not None
    assert desk.look() == first


def test_a_gateway_that_still_keeps_another_version_is_not_believed(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=True, now=False, times=40)
    desk.gateway.version = "support-v0-00000000"
    assert desk.regression.look(rig.task.name) is None


def test_a_prompt_that_is_never_answered_does_not_hold_up_the_others(rig: Rig) -> None:
    desk = Desk(rig)
    desk.audit(before=True, now=False, times=40)
    del desk.gateway.says["e2"]
    reason = None
    for _ in range(3):
        reason = reason or desk.regression.look(rig.task.name)
    assert reason is not None
    assert "Of 39 audited" in reason


@pytest.mark.parametrize("action", ["approve", "rollback"])
def test_without_a_version_to_go_back_to_nothing_is_asked(rig: Rig, action: DecisionAction) -> None:
    desk = Desk(rig, previous=action == "rollback", action=action)
    desk.audit(before=True, now=False, times=40)
    assert desk.look() is None
    assert desk.gateway.asked == []
