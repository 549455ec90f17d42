"""The sums of all traffic come back as they were added, and the newest of it as a mix."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from core_samples import NOON, TASK, make_event

from pipelines.reach import Reach
from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bin
from pipelines.tally import tally
from pipelines.types import PromptEvent, StudentAnswer
from storage.database import Database
from storage.migrate import migrate
from storage.traffic import NewestMix, add_traffic, newest_mix, window_sums

VERSION = "support-v1-aaaaaaaa"
SURE = confidence_bin(0.95)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "flywheel.duckdb")
    migrate(database)
    yield database
    database.close()


def event(minutes: int, *, reach: Reach = "near", unsure: str = "") -> PromptEvent:
    answer = StudentAnswer(
        version=VERSION, label="refund", confidence=0.95, reach=reach, unsure=unsure
    )
    at = NOON + timedelta(minutes=minutes)
    return make_event(student=answer, served_by="student", occurred_at=at)


def add(database: Database, *events: PromptEvent) -> None:
    with database.transaction() as tx:
        add_traffic(tx, tally((one, "refund") for one in events))


def mix(database: Database, events: int, minutes: int = 0) -> NewestMix:
    with database.snapshot() as tx:
        return newest_mix(tx, TASK.name, VERSION, NOON + timedelta(minutes=minutes), events)


def sizes(found: NewestMix) -> tuple[int, int]:
    return sum(found.near), sum(found.far)


def test_forced_and_novel_events_add_up_over_batches(database: Database) -> None:
    add(database, event(0), event(0, unsure="below_threshold"))
    add(database, event(0, reach="beyond", unsure="novel"), event(1, reach="far"))
    with database.snapshot() as tx:
        found = window_sums(tx, TASK.name, VERSION, NOON, NOON + timedelta(hours=1))
    assert (found.events, found.served, found.forced, found.novel) == (4, 4, 2, 1)
    assert found.forced_sum_f == pytest.approx(1.9)


def test_far_ones_add_up_within_a_minute(database: Database) -> None:
    """Also onto a minute that had none before."""
    add(database, event(0))
    add(database, event(0, reach="far"))
    add(database, event(0, reach="far"), event(0))
    found = mix(database, 100)
    assert (found.near[SURE], found.far[SURE]) == (2, 2)
    assert len(found.near) == len(found.far) == CONFIDENCE_BINS


def test_the_mix_is_of_the_newest_whole_minutes_that_hold_enough(database: Database) -> None:
    add(database, *[event(0, reach="far")] * 50, *[event(1)] * 60, *[event(2)] * 60)
    assert sizes(mix(database, 100)) == (120, 0)
    assert sizes(mix(database, 121)) == (120, 50)
    assert sizes(mix(database, 60)) == (60, 0)
    assert sizes(mix(database, 1_000, minutes=1)) == (120, 0), "from then on"


def test_what_is_beyond_reach_is_in_the_lowest_bin_of_the_mix(database: Database) -> None:
    add(database, event(0, reach="beyond", unsure="novel"))
    found = mix(database, 100)
    assert found.near[0] == 1
    assert sizes(found) == (1, 0)
    assert found.novel == 1
    add(database, *[event(1)] * 60)
    assert [mix(database, events).novel for events in (60, 61)] == [0, 1], "of whole minutes"


def test_without_traffic_there_is_no_mix(database: Database) -> None:
    assert mix(database, 100) == NewestMix([], [], 0)
    add(database, event(0))
    assert mix(database, 100, minutes=1) == NewestMix([], [], 0)
