"""The chaos run in small: each process killed under traffic, and the witnesses asked.

`make chaos` is the same over a real broker with 200 kills and 200,000 events.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.chaos.campaign import Plan, problems, run
from benchmarks.chaos.fuzz import fuzz
from benchmarks.chaos.kills import Victim

# The learner's, the gateway's and the operator's points: tests/faults/test_chaos_points.py.
KILLS: Sequence[tuple[Victim | None, str]] = (
    ("learner", ""),
    ("gateway", ""),
    ("supervisor", ""),
    (None, "supervisor.starting"),
    (None, "supervisor.started"),
    (None, "supervisor.bereft"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_of_every_process_lose_double_and_overpay_nothing(tmp_path: Path) -> None:
    plan = Plan(kills=len(KILLS), events=1_200, chosen=KILLS)

    outcome = run(plan, tmp_path, tell=False)

    assert problems(outcome) == []
    assert outcome.about["not_reached"] == []
    assert outcome.figures["kills"] == len(KILLS)
    assert outcome.about["kills_by_victim"] == {"learner": 1, "gateway": 1, "supervisor": 4}
    assert outcome.figures["events"] >= plan.events
    assert outcome.figures["answers_bought"] > 0
    assert len(outcome.about["versions_served"]) >= 2, "no student came to serve"


def test_fuzzed_records_are_all_accounted_for(tmp_path: Path) -> None:
    figures = fuzz(tmp_path, 3_000, seed=1)
    assert figures["fuzzed_unaccounted"] == 0
    assert figures["fuzzed_dead_letters"] > 500
    assert figures["fuzzed_events"] > 100
