"""What an operator may do: only what was evaluated, gated, looked at and verified is served."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from operating import START, TASK, Desk, open_desk

from pipelines.errors import ArtifactDamaged, BrokerUnavailable, Refused
from pipelines.statistics.spending import CAPACITY, FRACTION, YEAR, Turn
from service.sections import TeacherSettings
from storage.evaluations import gate_turn
from storage.runs import fail_running_runs, runs, start_run
from storage.ticks import (
    end_tick,
    fail_running_ticks,
    is_paused,
    last_ticks,
    record_tick,
    start_tick,
)
from storage.versions import add_version


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def states(desk: Desk) -> dict[int, str]:
    return {version.number: version.state for version in desk.operations.versions(TASK)}


def test_an_approval_makes_the_champion_and_publishes_it(desk: Desk) -> None:
    version, report = desk.candidate()
    assert states(desk) == {1: "waiting"}

    decision = desk.operations.approve(TASK, 1, report=report, operator="ada")

    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert (served.student, served.report, served.decision) == (
        version.student,
        report,
        decision.digest,
    )
    assert (served.name, served.threshold, served.base) == (version.name, 0.62, desk.encoder)
    assert desk.champion() == version.student
    assert states(desk) == {1: "champion"}


def test_only_the_report_that_was_looked_at_can_be_approved(desk: Desk) -> None:
    version, seen = desk.candidate()
    newer = desk.evaluate(version, threshold=0.7)

    with pytest.raises(Refused, match="not the latest one"):
        desk.operations.approve(TASK, 1, report=seen, operator="ada")
    assert desk.champion() is None
    desk.operations.approve(TASK, 1, report=newer, operator="ada")


def test_a_report_against_another_champion_cannot_be_approved(desk: Desk) -> None:
    desk.approved()
    desk.approved()
    version, report = desk.candidate()
    desk.operations.rollback(TASK, 1, reason="worse on vouchers", operator="ada")

    assert states(desk)[3] == "trained"
    with pytest.raises(Refused, match="evaluated again"):
        desk.operations.approve(TASK, 3, report=report, operator="ada")
    desk.operations.approve(TASK, 3, report=desk.evaluate(version), operator="ada")
    assert desk.champion() == version.student


@pytest.mark.parametrize(
    ("verdict", "passed", "state"),
    [
        ("insufficient_evidence", True, "insufficient_evidence"),
        ("worse", True, "gate_failed"),
        ("better", False, "gate_failed"),
    ],
)
def test_what_the_gate_does_not_let_through_cannot_be_approved(
    desk: Desk, verdict: str, passed: bool, state: str
) -> None:
    version = desk.train()
    report = desk.evaluate(version, verdict=verdict, passed=passed)  # type: ignore[arg-type]

    assert states(desk) == {1: state}
    with pytest.raises(Refused, match="the gate does not let"):
        desk.operations.approve(TASK, 1, report=report, operator="ada")
    assert desk.champion() is None


def test_what_would_serve_nothing_is_approved_only_by_who_knows_it(desk: Desk) -> None:
    report = desk.evaluate(desk.train(), threshold=None)
    (waiting,) = desk.operations.waiting()
    assert waiting.serves_nothing in waiting.sentence
    assert "every request still goes to the teacher" in waiting.serves_nothing
    assert "about 1,100 more held-out prompts may change that" in waiting.serves_nothing

    with pytest.raises(Refused, match="answers nothing by itself"):
        desk.operations.approve(TASK, 1, report=report, operator="ada")
    assert desk.champion() is None
    desk.operations.approve(TASK, 1, report=report, operator="ada", serves_nothing=True)
    assert desk.champion() == waiting.student


def test_a_version_with_a_threshold_says_nothing_of_the_kind(desk: Desk) -> None:
    desk.candidate()
    (waiting,) = desk.operations.waiting()
    assert waiting.serves_nothing == ""
    assert "by itself" not in waiting.sentence


def test_a_version_without_evaluation_cannot_be_approved(desk: Desk) -> None:
    desk.train()
    assert states(desk) == {1: "trained"}
    with pytest.raises(Refused, match="not evaluated yet"):
        desk.operations.approve(TASK, 1, report="0" * 64, operator="ada")


def test_a_changed_byte_after_evaluation_refuses_the_approval(desk: Desk) -> None:
    version, report = desk.candidate()
    file = desk.artifacts.path("student", version.student) / "student.json"
    file.write_text(file.read_text() + " ")

    with pytest.raises(ArtifactDamaged, match="is not what was published"):
        desk.operations.approve(TASK, 1, report=report, operator="ada")
    assert desk.champion() is None
    assert desk.live().tasks[TASK].champion is None


def test_a_decision_that_cannot_be_recorded_does_not_happen(desk: Desk) -> None:
    _, report = desk.candidate()
    (desk.folder / "decisions.jsonl").mkdir()

    with pytest.raises(OSError, match="directory"):
        desk.operations.approve(TASK, 1, report=report, operator="ada")
    assert desk.champion() is None
    assert desk.live().tasks[TASK].champion is None


def test_the_newest_promotable_version_waits_and_older_ones_are_superseded(desk: Desk) -> None:
    desk.candidate()
    desk.candidate()
    failed = desk.train()
    desk.evaluate(failed, verdict="worse")

    assert states(desk) == {1: "superseded", 2: "waiting", 3: "gate_failed"}
    waiting = desk.operations.waiting()
    assert [version.number for version in waiting] == [2]


def test_an_older_version_cannot_overtake_an_approved_one(desk: Desk) -> None:
    first, _ = desk.candidate()
    desk.approved()
    report = desk.evaluate(first)

    assert states(desk) == {1: "superseded", 2: "champion"}
    with pytest.raises(Refused, match="newer than"):
        desk.operations.approve(TASK, 1, report=report, operator="ada")


def test_a_rejection_needs_a_reason_and_is_final(desk: Desk) -> None:
    _, report = desk.candidate()
    with pytest.raises(Refused, match="say why"):
        desk.operations.reject(TASK, 1, reason="  ", operator="ada")

    desk.operations.reject(TASK, 1, reason="vouchers are worse", operator="ada")

    assert states(desk) == {1: "rejected"}
    assert desk.operations.versions(TASK)[0].decision_reason == "vouchers are worse"
    with pytest.raises(Refused, match="was rejected by ada"):
        desk.operations.approve(TASK, 1, report=report, operator="eve")
    with pytest.raises(Refused, match="rejected already"):
        desk.operations.reject(TASK, 1, reason="again", operator="ada")


def test_a_rollback_goes_only_to_a_formerly_approved_version(desk: Desk) -> None:
    first = desk.approved()
    desk.train()
    desk.approved()

    with pytest.raises(Refused, match="never approved"):
        desk.operations.rollback(TASK, 2, reason="test", operator="ada")
    with pytest.raises(Refused, match="champion already"):
        desk.operations.rollback(TASK, 3, reason="test", operator="ada")
    with pytest.raises(Refused, match="say why"):
        desk.operations.rollback(TASK, 1, reason="", operator="ada")

    desk.operations.rollback(TASK, 1, reason="test", operator="ada")
    live = desk.live().tasks[TASK]
    assert live.champion is not None
    assert live.champion.student == first.student
    assert live.previous is not None
    assert live.previous.number == 3


def test_a_rollback_without_a_number_never_goes_forward(desk: Desk) -> None:
    for _ in range(3):
        desk.approved()
    for expected in (2, 1):
        desk.operations.automatic_rollback(TASK, "agreement fell")
        assert states(desk)[expected] == "champion"
    with pytest.raises(Refused, match="approved before the champion"):
        desk.operations.automatic_rollback(TASK, "agreement fell")


def test_a_damaged_version_is_not_rolled_back_to(desk: Desk) -> None:
    first = desk.approved()
    second = desk.approved()
    (desk.artifacts.path("student", first.student) / "student.json").write_text("{}")

    with pytest.raises(ArtifactDamaged):
        desk.operations.rollback(TASK, None, reason="test", operator="ada")
    assert desk.champion() == second.student


@pytest.mark.parametrize("kind", ["student", "report", "encoder"])
def test_a_champion_whose_files_changed_is_found_before_it_is_needed(desk: Desk, kind: str) -> None:
    version = desk.approved()
    assert desk.operations.damaged_champions() == []
    served = desk.live().tasks[TASK].champion
    assert served is not None
    digest = {"student": version.student, "report": served.report, "encoder": version.base}[kind]
    file = next(desk.folder.glob(f"artifacts/*/{digest}*/[!m]*"))
    file.write_bytes(file.read_bytes() + b" ")
    assert desk.operations.damaged_champions() == [TASK]


@pytest.mark.parametrize("harm", ["removed", "garbled", "other"])
def test_live_json_is_made_again_from_the_decisions(desk: Desk, harm: str) -> None:
    version = desk.approved()
    serial = desk.live().serial
    if harm == "removed":
        desk.live_path.unlink()
    elif harm == "garbled":
        desk.live_path.write_text("{}")
    else:
        desk.live_path.write_bytes(desk.live_path.read_bytes().replace(b"support", b"s-pport"))

    desk.operations.recover()

    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert served.student == version.student
    assert desk.live().serial >= serial


def test_publishing_twice_changes_nothing(desk: Desk) -> None:
    desk.approved()
    content = desk.live_path.read_bytes()

    assert desk.operations.publish() is None
    assert desk.live_path.read_bytes() == content


def test_candidates_are_counted_over_the_year_with_those_that_were_promoted(desk: Desk) -> None:
    first, _ = desk.candidate()
    version, report = desk.candidate()
    later = START + timedelta(days=90)

    def turn(student: str, champion: str | None = None, now: datetime = later) -> Turn:
        with desk.database.snapshot() as tx:
            return gate_turn(tx, TASK, student, champion, now)

    again = turn(version.student)
    assert (again.attempt, again.look, again.promotions) == (2, 2, 0)
    assert again == turn(version.student, now=later + YEAR), "a later look keeps its share"
    assert (turn("another").attempt, turn("another").look) == (3, 1)
    soon = turn("another", now=START + timedelta(hours=1))
    assert again.share > soon.share, "each has less than the one before"
    assert turn("another").share > soon.share, "but the allowance comes back"

    desk.operations.approve(TASK, 2, report=report, operator="ada")
    served = version.student
    assert turn("another", served) == replace(turn("another"), promotions=1)
    assert turn(first.student, served).look == 1, (
        "against another champion it is another comparison"
    )
    assert turn("another", served, later + YEAR) == Turn(
        attempt=1, look=1, share=FRACTION * CAPACITY, promotions=0
    )


def test_a_student_keeps_its_number_and_a_number_its_student(desk: Desk) -> None:
    version = desk.train()
    with desk.database.transaction() as tx:
        assert add_version(tx, version) == version
    assert [known.number for known in desk.operations.versions(TASK)] == [1]


def test_a_run_that_the_learner_did_not_survive_has_failed(desk: Desk) -> None:
    with desk.database.transaction() as tx:
        start_run(
            tx, run_id="r", task=TASK, dataset="d", recipe="head", reason="asked for", now=START
        )
    with desk.database.transaction() as tx:
        assert fail_running_runs(tx, START + timedelta(minutes=1)) == ["r"]
    with desk.database.snapshot() as tx:
        assert [(run.status, run.failure) for run in runs(tx, TASK, 5)] == [
            ("failed", "the learner ended while it ran")
        ]
    assert any("failed" in need.sentence for need in desk.operations.status().needs)


def test_a_tick_runs_once(desk: Desk) -> None:
    with desk.database.transaction() as tx:
        assert start_tick(tx, job="train", scheduled_at=START, now=START)
    with desk.database.transaction() as tx:
        assert not start_tick(tx, job="train", scheduled_at=START, now=START)
        end_tick(
            tx,
            job="train",
            scheduled_at=START,
            outcome="nothing",
            detail="12 of 200 labels",
            now=START,
        )
    with desk.database.snapshot() as tx:
        assert last_ticks(tx)["train"].detail == "12 of 200 labels"
    with desk.database.transaction() as tx:
        assert fail_running_ticks(tx, START) == []


def test_a_running_tick_shows_before_those_missed_meanwhile(desk: Desk) -> None:
    later = START + timedelta(minutes=1)
    with desk.database.transaction() as tx:
        start_tick(tx, job="train", scheduled_at=START, now=START)
        record_tick(tx, job="train", scheduled_at=later, outcome="missed", detail="runs", now=later)
    with desk.database.snapshot() as tx:
        assert last_ticks(tx)["train"].outcome == "running"


def test_pausing_all_pauses_every_job(desk: Desk) -> None:
    desk.operations.pause("all", operator="ada")
    with desk.database.snapshot() as tx:
        assert is_paused(tx, "relabel")
    assert all(job.paused for job in desk.operations.status().jobs)
    with pytest.raises(Refused, match="whole learner is paused"):
        desk.operations.resume("train", operator="ada")

    desk.operations.resume("all", operator="ada")
    desk.operations.pause("train", operator="ada")
    paused = {job.job for job in desk.operations.status().jobs if job.paused}
    assert paused == {"train"}
    with pytest.raises(Refused, match="there is no job lunch"):
        desk.operations.pause("lunch", operator="ada")


def test_training_is_refused_without_terms(tmp_path: Path) -> None:
    teacher = TeacherSettings(base_url="http://127.0.0.1:9/v1", model="m")
    with open_desk(tmp_path, teacher=teacher) as desk:
        with pytest.raises(Refused, match="terms"):
            desk.operations.request_train(TASK, operator="ada")
        assert not desk.board.take_wish(TASK)
        assert desk.operations.status().needs[0].kind == "terms"


def test_training_can_be_asked_for(desk: Desk) -> None:
    desk.operations.request_train(TASK, operator="ada")
    assert desk.board.take_wish(TASK)
    with pytest.raises(Refused, match="there is no task other"):
        desk.operations.request_train("other", operator="ada")


def test_a_dead_letter_is_replayed_as_it_came_and_once(desk: Desk) -> None:
    desk.dead_letter(7, b"\xff\xfe", "not UTF-8")
    desk.operations.replay("flywheel.prompts", 0, 7, operator="ada")

    assert desk.writer.durable == [(b"\xff\xfe", (("producer", b"app"),))]
    with pytest.raises(Refused, match="replayed already"):
        desk.operations.replay("flywheel.prompts", 0, 7, operator="ada")
    with pytest.raises(Refused, match="no dead letter"):
        desk.operations.replay("flywheel.prompts", 0, 8, operator="ada")


def test_a_replay_that_did_not_become_durable_can_be_repeated(desk: Desk) -> None:
    desk.dead_letter(7, b"{}", "no messages")
    desk.writer.broken = BrokerUnavailable("the broker is gone")
    with pytest.raises(BrokerUnavailable):
        desk.operations.replay("flywheel.prompts", 0, 7, operator="ada")
    assert [letter.replayed_at for letter in desk.operations.dead_letters()] == [None]


def test_unknown_outcomes_are_released_or_dropped_by_key(desk: Desk) -> None:
    first, second = desk.hold("e-1"), desk.hold("e-2")
    desk.operations.release(first, operator="ada")
    desk.operations.drop(second, operator="ada")

    steps = [call.step if (call := desk.ledger.call(key)) else "" for key in (first, second)]
    assert steps == ["released", "dropped"]
    with pytest.raises(Refused, match="no held call"):
        desk.operations.drop(first, operator="ada")


def test_a_scripted_teacher_is_named_as_such(desk: Desk) -> None:
    assert desk.operations.status().teacher.scripted


def test_the_feed_tells_what_happened_newest_first(desk: Desk) -> None:
    desk.approved()
    feed = [entry.sentence for entry in desk.operations.activity()]
    assert feed[0] == "ada approved support-v1"
    assert "better than every rival; it can be approved" in feed[1]
