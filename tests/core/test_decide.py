"""The rules about decisions, which the learner and a rollback without it both ask."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from pipelines.decide import (
    DECIDED,
    VERDICTS,
    Chain,
    never_approved,
    rollback_target,
    verdict_in_words,
)
from pipelines.errors import DataDamaged, Refused
from pipelines.types import Decision, DecisionAction, StudentVersion, Verdict

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def chain(*made: tuple[DecisionAction, str]) -> Chain:
    links = [
        Decision(
            sequence=number,
            task="support",
            action=action,
            student=student,
            report=f"report of {student}",
            operator="ada",
            reason="",
            decided_at=NOW,
            previous_digest="",
            digest="",
        )
        for number, (action, student) in enumerate(made, start=1)
    ]
    return Chain.of("support", links)


def version(number: int, student: str) -> StudentVersion:
    return StudentVersion(
        task="support",
        number=number,
        student=student,
        dataset="",
        family="head",
        base_kind="encoder",
        base="",
        recipe="head",
        labels_trained=1,
        labels_bought=1,
        trained_at=NOW,
        train_seconds=1.0,
    )


ONE, TWO, THREE = version(1, "one"), version(2, "two"), version(3, "three")
ALL = [THREE, TWO, ONE]


def test_the_champion_is_the_student_of_the_latest_approval_or_rollback() -> None:
    assert chain().champion is None
    assert chain(("approve", "one"), ("reject", "two")).champion == "one"
    served = chain(("approve", "one"), ("approve", "two"), ("rollback", "one"))
    assert (served.champion, served.before) == ("one", "two")
    assert served.approved == ("one", "two")


def test_a_champion_has_an_approval_or_the_chain_is_damaged() -> None:
    assert chain(("approve", "one")).approval_of("one").report == "report of one"
    with pytest.raises(DataDamaged, match="never approved"):
        chain(("rollback", "one")).approval_of("one")


def test_a_rollback_goes_to_what_was_approved_before_and_never_forward() -> None:
    served = chain(("approve", "one"), ("approve", "two"), ("approve", "three"))
    assert rollback_target(served, ALL, None) is TWO
    back = chain(("approve", "one"), ("approve", "two"), ("rollback", "one"))
    with pytest.raises(Refused, match="approved before the champion"):
        rollback_target(back, ALL, None)


def test_a_rollback_passes_over_a_version_that_nobody_knows_any_more() -> None:
    """Two copies of this rule differed: without the learner it was refused. Whoever rolls back
    needs something that works, now; a version whose files are gone cannot serve."""
    served = chain(("approve", "one"), ("approve", "two"), ("approve", "three"))
    assert rollback_target(served, [THREE, ONE], None) is ONE
    with pytest.raises(Refused, match="has no version 2"):
        rollback_target(served, [THREE, ONE], 2)


def test_a_rollback_by_number_goes_only_to_what_was_approved() -> None:
    served = chain(("approve", "one"), ("approve", "two"), ("reject", "three"))
    assert rollback_target(served, ALL, 1) is ONE
    with pytest.raises(Refused, match="champion already"):
        rollback_target(served, ALL, 2)
    with pytest.raises(Refused, match="never approved"):
        rollback_target(served, ALL, 3)
    assert "support-v9 was never approved" in str(never_approved("support-v9"))
    with pytest.raises(Refused, match="has no champion yet"):
        rollback_target(chain(), ALL, None)


def test_a_verdict_is_said_in_the_same_words_everywhere() -> None:
    # The feed, the history, the card, the terminal and the console had words of their own.
    assert verdict_in_words("better", champion=None) == "better than every rival"
    assert verdict_in_words("better", champion="a" * 64) == "better than the champion"
    assert verdict_in_words("insufficient_evidence", champion=None) == "too little evidence to tell"
    assert set(VERDICTS) == set(get_args(Verdict))
    assert set(DECIDED) == set(get_args(DecisionAction))
    shown = [*ROOT.glob("service/**/*.py"), *ROOT.glob("pipelines/**/*.py")]
    shown += ROOT.glob("service/console/templates/*.html")
    own = re.compile(r"verdict(\"\]|'\])?(\.replace\(| \| words)")
    assert [str(path) for path in shown if own.search(path.read_text())] == []
