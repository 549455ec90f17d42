"""The draws: repeatable, at the promised rates, independent, and on the right side."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
from core_samples import TASK, answered, make_event

from pipelines.assess import assess
from pipelines.sample import (
    LEARNING_SCALE_MAX,
    SamplingPolicy,
    choose,
    choose_feedback,
    next_learning_scale,
    settle,
    side_of,
    uniforms,
)
from pipelines.types import Assessment, Draws, Feedback, SampleReason, Side

SALT = b"s" * 32
POLICY = SamplingPolicy(
    salt=SALT,
    audit_rate=0.05,
    held_out_rate=0.1,
    given_rate=0.2,
    learning_scale=1.0,
    learning_pi_min=0.02,
    cold_start_rate=0.3,
    cold_start=False,
)
MANY = 20_000
UNSURE = Assessment(failure_probability=0.3, segment="refund")


def within(hits: int, rate: float, events: int = MANY) -> bool:
    """Five standard errors: one false alarm in two million."""
    return abs(hits - rate * events) <= 5 * math.sqrt(events * rate * (1 - rate))


def test_redelivered_event_gets_the_same_decision() -> None:
    events = [make_event(f"e-{number}", student=answered(0.7)) for number in range(500)]
    first = [choose(event, UNSURE, POLICY, has_teacher_label=False) for event in events]
    again = [choose(event, UNSURE, POLICY, has_teacher_label=False) for event in reversed(events)]
    assert first == again[::-1]
    assert any(first)


def test_rates_are_what_the_policy_says() -> None:
    cold = replace(POLICY, cold_start=True)
    audit = held_out = learning = cold_start = given = 0
    for number in range(MANY):
        event = make_event(f"e-{number}", student=answered(0.7))
        choice = choose(event, UNSURE, cold, has_teacher_label=True)
        if choice is None:
            continue
        audit += choice.draws.audit is not None
        held_out += choice.draws.held_out is not None
        learning += choice.draws.learning is not None
        cold_start += choice.cold_start
        given += choice.given
    assert within(audit, 0.05)
    assert within(held_out, 0.1)
    assert within(learning, 0.3)
    assert within(cold_start, 0.3)
    assert within(given, 0.2)


def test_before_there_is_a_student_audits_of_free_answers_say_what_the_traffic_is() -> None:
    free = replace(POLICY, held_out_free_rate=0.5)
    for student, answer, rate in ((None, True, 0.5), (None, False, 0.05), (0.7, True, 0.05)):
        audits = 0
        for number in range(MANY):
            event = make_event(
                f"e-{number}", student=None if student is None else answered(student)
            )
            choice = choose(event, UNSURE, free, has_teacher_label=answer)
            if choice is not None and choice.draws.audit is not None:
                assert choice.draws.audit == rate
                audits += 1
        assert within(audits, rate)


def test_draws_are_independent_of_each_other() -> None:
    drawn = [[value < 0.3 for value in uniforms(f"e-{n}", SALT)] for n in range(MANY)]
    for one, other in combinations(range(4), 2):
        both = sum(row[one] and row[other] for row in drawn)
        assert within(both, 0.09), (one, other)


def test_side_is_independent_of_the_draws_and_one_in_five() -> None:
    held_out = [n for n in range(MANY) if side_of(f"e-{n}", SALT) is Side.HELD_OUT]
    assert within(len(held_out), 0.2)
    drawn = sum(uniforms(f"e-{n}", SALT).held_out < 0.3 for n in held_out)
    assert within(drawn, 0.3, len(held_out))


def test_nobody_without_the_salt_can_tell_what_is_chosen() -> None:
    ids = [f"e-{number}" for number in range(2_000)]
    ours = [uniforms(name, SALT).audit < 0.5 for name in ids]
    theirs = [uniforms(name, b"t" * 32).audit < 0.5 for name in ids]
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    assert within(same, 0.5, len(ids))


def test_learning_probability_is_logged_and_never_below_its_minimum() -> None:
    sure = Assessment(failure_probability=0.0001, segment="refund")
    chosen = []
    for number in range(MANY):
        event = make_event(f"e-{number}", student=answered(0.9999))
        choice = choose(event, sure, POLICY, has_teacher_label=False)
        if choice is not None and choice.draws.learning is not None:
            chosen.append(choice.draws.learning)
    assert set(chosen) == {0.02}
    assert within(len(chosen), 0.02)


def test_learning_probability_is_at_most_one() -> None:
    eager = replace(POLICY, learning_scale=50.0)
    choice = choose(make_event(student=answered(0.1)), UNSURE, eager, has_teacher_label=False)
    assert choice is not None
    assert choice.draws.learning == 1.0


def test_event_without_a_student_is_left_to_the_uniform_draws() -> None:
    for number in range(2_000):
        choice = choose(make_event(f"e-{number}"), UNSURE, POLICY, has_teacher_label=False)
        assert choice is None or choice.draws.learning is None


def test_full_queue_leaves_only_the_uniform_draws_and_what_is_free() -> None:
    full = replace(POLICY, full=True, cold_start=True, cold_start_rate=1.0)
    bad = Assessment(failure_probability=1.0, segment="", triggers=(SampleReason.INVALID,))
    audits = 0
    for number in range(MANY):
        event = make_event(f"e-{number}", student=answered(0.1))
        choice = choose(event, bad, full, has_teacher_label=False)
        if choice is not None:
            assert choice.draws.learning is None
            assert choice.trigger is None
            assert not choice.cold_start
            audits += choice.draws.audit is not None
    assert within(audits, 0.05)


@pytest.mark.parametrize(
    ("draws", "trigger", "side", "reason"),
    [
        (Draws(audit=0.1, held_out=0.1, learning=0.1), None, Side.HELD_OUT, SampleReason.HELD_OUT),
        (Draws(audit=0.1, learning=0.1), None, Side.HELD_OUT, SampleReason.AUDIT),
        (Draws(learning=0.1), SampleReason.INVALID, Side.HELD_OUT, None),
        (Draws(audit=0.1, held_out=0.1), None, Side.TRAINING, SampleReason.AUDIT),
        (Draws(held_out=0.1), None, Side.TRAINING, None),
        (Draws(learning=0.1), SampleReason.INVALID, Side.TRAINING, SampleReason.INVALID),
        (Draws(learning=0.1), None, Side.TRAINING, SampleReason.UNCERTAIN),
    ],
)
def test_side_decides_which_draw_counts(
    draws: Draws, trigger: SampleReason | None, side: Side, reason: SampleReason | None
) -> None:
    event = make_event(student=answered(0.5))
    template = choose(event, UNSURE, replace(POLICY, audit_rate=1.0), has_teacher_label=False)
    assert template is not None
    settled = settle(
        template._replace(draws=draws, trigger=trigger, cold_start=False, given=False), side
    )
    assert (settled[0] if settled else None) is reason
    if settled:
        closed = settled[1].learning if side is Side.HELD_OUT else settled[1].held_out
        assert closed is None, "a draw that the side is closed to is not logged as one"


@pytest.mark.parametrize(("cold", "given"), [(True, True), (True, False), (False, True)])
def test_what_was_not_drawn_never_enters_the_held_out_side(cold: bool, given: bool) -> None:
    choice = choose(
        make_event(),
        UNSURE,
        replace(POLICY, cold_start=True, cold_start_rate=1.0, given_rate=1.0),
        has_teacher_label=True,
    )
    assert choice is not None
    picked = choice._replace(draws=Draws(), trigger=None, cold_start=cold, given=given)
    assert settle(picked, Side.HELD_OUT) is None
    settled = settle(picked, Side.TRAINING)
    assert settled is not None
    assert settled[0] is (SampleReason.COLD_START if cold else SampleReason.GIVEN)


def test_feedback_is_no_traffic_and_enters_no_draw() -> None:
    bad = make_event(feedback=Feedback(verdict="bad"), answer="refund", served_by="student")
    choice = choose_feedback(assess(bad, TASK))
    assert choice is not None
    assert choice.draws == Draws()
    settled = settle(choice, Side.TRAINING)
    assert settled is not None
    assert settled[0] is SampleReason.FEEDBACK
    assert settle(choice, Side.HELD_OUT) is None
    good = make_event(feedback=Feedback(verdict="good"), answer="refund", served_by="student")
    assert choose_feedback(assess(good, TASK)) is None


@pytest.mark.parametrize(
    ("answer", "served_by", "triggered"),
    [("refund", "student", False), ("", "student", True), ("hello", "app", True),
     ("hello", "teacher", False), (None, "app", False)],
)  # fmt: skip
def test_answer_outside_the_label_set_is_a_trigger(
    answer: str | None, served_by: str, triggered: bool
) -> None:
    found = assess(make_event(answer=answer, served_by=served_by), TASK)
    assert (SampleReason.INVALID in found.triggers) is triggered


def test_failure_probability_is_one_minus_the_calibrated_confidence() -> None:
    found = assess(make_event(student=answered(0.75, "cancel")), TASK)
    assert found.failure_probability == 0.25
    assert found.segment == "cancel"


def test_segment_can_be_an_attribute() -> None:
    by_region = replace(TASK, segment_by="region")
    assert assess(make_event(attributes={"region": "eu"}), by_region).segment == "eu"


def test_policy_version_changes_with_the_rates_and_hides_the_salt() -> None:
    assert replace(POLICY, audit_rate=0.06).version != POLICY.version
    assert replace(POLICY, salt=b"t" * 32).version == POLICY.version


@pytest.mark.parametrize("start", [0.01, 1.0, 50.0])
def test_controller_brings_the_learning_draw_to_its_share_of_the_budget(start: float) -> None:
    budget, ticks, events_a_tick = 1_200.0, 8_640, 20
    scale, spent = start, 0.0
    for tick in range(ticks):
        scale = next_learning_scale(scale, spent=spent, due=budget * tick / ticks, budget=budget)
        spent += events_a_tick * min(1.0, scale * 0.05)
    assert spent == pytest.approx(budget, rel=0.1)
    assert 0.01 <= scale <= LEARNING_SCALE_MAX


def test_controller_without_a_budget_draws_nothing() -> None:
    assert next_learning_scale(1.0, spent=0, due=0, budget=0) == 0.0


def test_the_pool_is_the_stretch_behind_the_held_out_draw_and_of_its_side_alone() -> None:
    policy = replace(POLICY, audit_rate=0.0, pool_rate=0.25)
    held_out = pool = 0
    for number in range(MANY):
        event = make_event(f"e-{number}")
        choice = choose(event, UNSURE, policy, has_teacher_label=False)
        if choice is None:
            continue
        draws = choice.draws
        assert (draws.held_out is None) != (draws.pool is None), "one of the two"
        held_out += draws.held_out is not None
        pool += draws.pool is not None
        assert settle(choice, Side.TRAINING) is None
        settled = settle(choice, Side.HELD_OUT)
        assert settled is not None
        if draws.pool is not None:
            assert settled == (SampleReason.POOL, Draws(pool=0.25))
    assert within(held_out, 0.1)
    assert within(pool, 0.25)


def test_an_audit_of_the_pool_is_an_audit_and_in_the_pool() -> None:
    policy = replace(POLICY, audit_rate=1.0, held_out_rate=0.25, pool_rate=1.0)
    found = [
        choose(make_event(f"e-{number}"), UNSURE, policy, has_teacher_label=False)
        for number in range(200)
    ]
    settled = {settle(choice, Side.HELD_OUT) for choice in found if choice is not None}
    assert settled == {
        (SampleReason.HELD_OUT, Draws(audit=1.0, held_out=0.25)),
        (SampleReason.AUDIT, Draws(audit=1.0, pool=0.75)),
    }


def test_a_policy_that_keeps_events_is_another_version() -> None:
    assert replace(POLICY, pool_rate=0.5).version != POLICY.version
