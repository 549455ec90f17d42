"""A retrain starts when it should; when it does not, one sentence says why, with numbers."""

import dataclasses
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pipelines.trigger import Due, NotDue, TriggerPolicy, TriggerState, back_off, is_retrain_due

POLICY = TriggerPolicy()
COLD = TriggerState(labels=0, held_out_groups=0, has_student=False)
RUNNING = TriggerState(
    labels=1_100,
    held_out_groups=300,
    has_student=True,
    labels_at_last_training=1_000,
    since_last_training=timedelta(hours=3),
    certified_coverage=0.82,
)


def ask(state: TriggerState, **changes: Any) -> Due | NotDue:
    return is_retrain_due(dataclasses.replace(state, **changes), POLICY)


@pytest.mark.parametrize(
    ("labels", "groups", "due", "words"),
    [
        (0, 0, False, "There are no labels"),
        (199, 400, False, "needs 200 labels; there are 199"),
        (200, 149, False, "needs 150 held-out groups to be judged on; there are 149"),
        (200, 150, True, "200 labels and 150 held-out groups"),
    ],
)
def test_a_first_student_waits_for_labels_and_for_groups(
    labels: int, groups: int, due: bool, words: str
) -> None:
    found = ask(COLD, labels=labels, held_out_groups=groups)
    assert isinstance(found, Due) is due
    assert words in found.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": 2_000}, "2000 labels, 2 times the 1000"),
        ({"drift_alarm": True}, "drifted, and there are 100 new labels"),
        ({"coverage_drop": 0.06}, "fell by 6.0 points below the 82.0 %"),
        ({"asked_by_operator": True}, "operator asked"),
    ],
)
def test_growth_drift_a_drop_and_a_wish_start_a_retrain(
    changes: dict[str, Any], words: str
) -> None:
    found = ask(RUNNING, **changes)
    assert isinstance(found, Due)
    assert words in found.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "1100 labels; the next training is at 2000"),
        ({"coverage_drop": 0.05}, "falls by more than 5.0 points"),
        ({"coverage_drop": float("nan")}, "next training is at 2000"),
        ({"labels": 1_049, "drift_alarm": True}, "49 new labels since the last training"),
        ({"labels": 900}, "0 new labels"),
        ({"labels": 1_999, "certified_coverage": None, "coverage_drop": 0.5}, "is at 2000"),
        ({"since_last_training": timedelta(minutes=4), "labels": 9_000}, "at least 5 min apart"),
        ({"training_runs": True, "asked_by_operator": True}, "A training is running"),
        ({"candidate_waits": True, "coverage_drop": 0.5}, "A candidate waits for the operator"),
        (
            {"failures_in_a_row": 3, "since_last_training": timedelta(minutes=3)},
            "failed 3 times in a row; the next try is in 60 s",
        ),
    ],
)
def test_every_no_says_why(changes: dict[str, Any], words: str) -> None:
    found = ask(RUNNING, **changes)
    assert isinstance(found, NotDue)
    assert words in found.reason


def test_a_waiting_candidate_does_not_stop_growth() -> None:
    assert isinstance(ask(RUNNING, candidate_waits=True, labels=2_000), Due)


def test_an_operator_skips_the_waiting() -> None:
    soon = {"since_last_training": timedelta(seconds=5), "failures_in_a_row": 4}
    assert isinstance(ask(RUNNING, asked_by_operator=True, **soon), Due)


def test_after_a_failure_the_pause_grows_and_then_ends() -> None:
    pauses = [back_off(failures, POLICY) for failures in range(12)]
    assert pauses[:4] == [timedelta(0), *(timedelta(minutes=2**i) for i in range(3))]
    assert pauses[-1] == back_off(10_000, POLICY) == timedelta(hours=6)
    once = {"failures_in_a_row": 1, "labels": 2_000}
    assert isinstance(ask(RUNNING, since_last_training=timedelta(seconds=59), **once), NotDue)
    assert isinstance(ask(RUNNING, since_last_training=timedelta(seconds=60), **once), Due)


def test_it_says_when_a_first_student_can_be_expected() -> None:
    state = TriggerState(
        labels=500, held_out_groups=50, has_student=False, labels_per_day=800, groups_per_day=200
    )
    due = is_retrain_due(state, TriggerPolicy(min_groups=150))
    assert isinstance(due, NotDue)
    assert due.reason.endswith("there are 50, the rest in about 12 h at this pace.")
    still = is_retrain_due(replace(state, groups_per_day=0.0), TriggerPolicy(min_groups=150))
    assert still.reason.endswith("there are 50, and none came lately.")


def test_a_student_that_answers_nothing_is_tried_again_with_a_fifth_more_labels() -> None:
    state = TriggerState(
        labels=1_190,
        held_out_groups=300,
        has_student=True,
        labels_at_last_training=1_000,
        serves_nothing=True,
    )
    assert isinstance(is_retrain_due(state, POLICY), NotDue)
    due = is_retrain_due(replace(state, labels=1_200), POLICY)
    assert due == Due("The student answers nothing by itself, and there are 200 new labels.")
    serving = replace(state, labels=1_200, serves_nothing=False)
    assert isinstance(is_retrain_due(serving, POLICY), NotDue)
