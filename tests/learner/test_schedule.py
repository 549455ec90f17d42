"""The schedule: one instance of a job, every firing recorded once, failures survived."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from learner_rig import Rig, open_rig

from pipelines.errors import TeacherRefused
from service.learner.schedule import Schedule
from service.operator.board import Board
from storage.ticks import JobResult, pause, resume

NEVER = "every 10h"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        yield opened


@contextmanager
def running(
    rig: Rig, board: Board | None = None, **jobs: tuple[str, Callable[[], JobResult]]
) -> Iterator[Schedule]:
    schedule = Schedule(jobs, rig.database, rig.metrics, board or Board())
    schedule.start()
    try:
        yield schedule
    finally:
        schedule.stop()


def ticks(rig: Rig, job: str, outcome: str) -> list[str]:
    query = "SELECT detail FROM ticks WHERE job = ? AND outcome = ? ORDER BY started_at"
    return [detail for (detail,) in rig.rows(query, job, outcome)]


def wait_for(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_firing_is_recorded_with_what_came_of_it(rig: Rig) -> None:
    calls = []

    def job() -> JobResult:
        calls.append(1)
        return JobResult("nothing", "there was nothing to do")

    with running(rig, look=("every 100ms", job)):
        wait_for(lambda: len(ticks(rig, "look", "nothing")) >= 3)
    # What a busy machine has missed is recorded too, as that.
    assert len(ticks(rig, "look", "nothing")) == len(calls)
    assert set(rig.rows("SELECT outcome FROM ticks")) <= {("nothing",), ("missed",)}
    assert set(ticks(rig, "look", "nothing")) == {"there was nothing to do"}
    assert rig.metrics.registry.get_sample_value(
        "flywheel_job_last_success_timestamp_seconds", {"job": "look"}
    )


def test_a_failure_is_recorded_and_the_schedule_goes_on(rig: Rig) -> None:
    outcomes = iter([TeacherRefused("the key was refused"), ValueError("a bug")])

    def job() -> JobResult:
        if error := next(outcomes, None):
            raise error
        return JobResult("done", "all is well")

    with running(rig, work=("every 100ms", job)):
        wait_for(lambda: ticks(rig, "work", "done"))
    assert ticks(rig, "work", "failed") == ["the key was refused", "ValueError: a bug"]


def test_one_instance_runs_and_what_it_missed_is_recorded(rig: Rig) -> None:
    at_once, most, go_on = [0], [0], Event()

    def slow() -> JobResult:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        go_on.wait(60)
        at_once[0] -= 1
        return JobResult("done", "at last")

    with running(rig, slow=("every 100ms", slow)) as schedule:
        wait_for(lambda: ticks(rig, "slow", "missed"))
        schedule.run_now("slow")
        time.sleep(0.3)
        go_on.set()
        wait_for(lambda: ticks(rig, "slow", "done"))
    assert most == [1]


def test_a_paused_job_does_nothing_and_says_so(rig: Rig) -> None:
    calls = []

    def job() -> JobResult:
        calls.append(1)
        return JobResult("done", "")

    with rig.database.transaction() as tx:
        pause(tx, job="work", operator="ada", now=rig.now())
    with running(rig, work=("every 100ms", job)):
        wait_for(lambda: len(ticks(rig, "work", "paused")) >= 2)
        assert calls == []
        with rig.database.transaction() as tx:
            resume(tx, "work")
        wait_for(lambda: calls)


def test_run_now_does_not_wait_for_the_schedule(rig: Rig) -> None:
    board = Board()
    with running(rig, board, train=(NEVER, lambda: JobResult("done", "trained"))) as schedule:
        assert ticks(rig, "train", "done") == []
        schedule.run_now("train")
        wait_for(lambda: ticks(rig, "train", "done"))
    assert board.next_ticks["train"] is not None


def test_what_a_crash_left_running_has_failed(rig: Rig) -> None:
    with rig.database.transaction() as tx:
        tx.execute(
            "INSERT INTO ticks VALUES ('work', TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-01', "
            "NULL, 'running', '')"
        )
    with running(rig, work=(NEVER, lambda: JobResult("done", ""))):
        pass
    assert len(ticks(rig, "work", "failed")) == 1


def test_cron_lines_are_understood(rig: Rig) -> None:
    board = Board()
    with running(rig, board, nightly=("30 3 * * *", lambda: JobResult("done", ""))):
        upcoming = board.next_ticks["nightly"]
    assert upcoming is not None
    assert board.next_ticks["ingest"] is None, "no clock decides about it"
    assert (upcoming.hour, upcoming.minute) == (3, 30)
