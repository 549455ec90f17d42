"""The console tells the loop as it is: every step, honest charts, a feed without holes."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from console_server import TOKEN, seed
from operating import START, TASK, Desk, make_history, open_desk
from starlette.testclient import TestClient

from service.console.app import console_app
from service.console.charts import agreement_chart, coverage_chart, reign_bars, spend_chart
from service.operator.status import Figures, HistoryPoint, IngestState, Progress, Step
from storage.ticks import TickOutcome, record_tick
from storage.traffic import add_gaps, store_offsets

ORIGIN = "http://127.0.0.1"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


@pytest.fixture
def seeded(desk: Desk) -> Desk:
    seed(desk)
    return desk


def client_of(desk: Desk) -> TestClient:
    app = console_app(desk.operations, TOKEN, desk.settings, failure_seconds=0.0)
    return TestClient(app, base_url=ORIGIN, headers=BEARER, follow_redirects=False)


def step(desk: Desk, name: str) -> Step:
    desk.operations.note_change()
    return next(one for one in desk.operations.status().tasks[0].loop if one.name == name)


def tick(desk: Desk, job: str, outcome: TickOutcome, detail: str) -> None:
    now = desk.clock()
    with desk.database.transaction() as tx:
        record_tick(tx, job=job, scheduled_at=now, outcome=outcome, detail=detail, now=now)


# The loop.


def test_every_step_says_why_it_does_nothing_before_anything_has_happened(desk: Desk) -> None:
    steps = desk.operations.status().tasks[0].loop
    assert [one.name for one in steps] == [
        "ingest", "sample", "label", "dataset", "train",
        "evaluate", "gate", "approve", "swap", "watch",
    ]  # fmt: skip
    for one in steps:
        assert one.last_at is None, one
        assert one.did == "", one
        assert one.next or one.next_at, one
        assert one.why or one.name == "train", one  # its reason comes with the first look
    assert step(desk, "ingest").why == "No record has come yet."


def test_a_job_tells_its_last_work_and_why_it_is_idle_now(desk: Desk) -> None:
    tick(desk, "relabel", "done", "12 labels")
    worked_at = desk.clock.at
    tick(desk, "relabel", "nothing", "no label was bought: the day's budget is spent")
    told = step(desk, "label")
    assert told.state == "idle"
    assert told.did == "12 labels."
    assert told.last_at == worked_at
    assert told.why == "No label was bought: the day's budget is spent."
    assert told.next_at is not None


def test_what_is_paused_names_who_paused_it(desk: Desk) -> None:
    desk.operations.pause("relabel", operator="grace")
    assert step(desk, "label").why == "Paused by grace."
    assert step(desk, "label").state == "paused"
    desk.operations.pause("all", operator="ada")
    assert step(desk, "watch").why == "Paused by ada."


def test_ingest_tells_why_it_is_held_and_how_far_behind_it_is(desk: Desk) -> None:
    with desk.database.transaction() as tx:
        store_offsets(tx, "flywheel.prompts", "id", {0: 10}, desk.clock())
    desk.board.ingest = IngestState(lag=4_321)
    assert step(desk, "ingest").state == "working"
    assert "4,321 records not read yet" in step(desk, "ingest").did
    desk.board.ingest = IngestState(held="only 12 MB are free on the disk")
    assert step(desk, "ingest").state == "failed"
    assert step(desk, "ingest").why == "Only 12 MB are free on the disk."
    desk.board.ingest = IngestState()
    desk.clock.at += timedelta(minutes=10)
    assert step(desk, "ingest").state == "idle"


def test_a_candidate_goes_through_gate_and_operator_to_the_gateways(desk: Desk) -> None:
    version, report = desk.candidate()
    assert step(desk, "gate").did == "support-v1: 4 of 4 checks passed."
    assert step(desk, "approve").state == "waiting"
    assert step(desk, "approve").link == f"/tasks/{TASK}/versions/1"
    assert step(desk, "swap").why == "Nothing is published: no version was approved yet."

    desk.operations.approve(TASK, 1, report=report, operator="ada")
    assert step(desk, "approve").did == "ada approved support-v1."
    assert step(desk, "swap").why == "No gateway has reported."

    desk.gateways.heard({"gateway": "one", "serving": {TASK: version.name}, "failed": {}})
    desk.gateways.heard({"gateway": "two", "serving": {}, "failed": {}})
    assert step(desk, "swap").state == "working"
    assert step(desk, "swap").did == "1 of 2 gateways serve support-v1."
    desk.gateways.heard({"gateway": "two", "serving": {}, "failed": {TASK: "golden prompts"}})
    assert step(desk, "swap").state == "failed"
    assert step(desk, "swap").why == "Golden prompts."


def test_a_silent_gateway_is_not_counted_among_those_that_serve(desk: Desk) -> None:
    version = desk.approved()
    desk.gateways.heard({"gateway": "one", "serving": {TASK: version.name}})
    desk.clock.at += timedelta(minutes=1)
    assert step(desk, "swap").why == "No gateway has reported. 1 gateway fell silent."


def test_the_gate_says_what_it_refused(desk: Desk) -> None:
    desk.evaluate(desk.train(), verdict="worse", passed=False)
    told = step(desk, "gate")
    assert told.state == "refused"
    assert "3 of 4 checks passed. 4.7 % of the items" in told.did


def test_a_running_training_shows_step_loss_and_time_left(seeded: Desk) -> None:
    with seeded.database.transaction() as tx:
        from storage.runs import start_run

        start_run(
            tx,
            run_id="r",
            task=TASK,
            dataset="0" * 64,
            recipe="head",
            reason="an operator asked for it",
            now=seeded.clock(),
        )
    seeded.board.progress = Progress(
        step=310, total=480, phase="tune", loss=0.4312, seconds_left=12.2
    )
    told = step(seeded, "train")
    assert told.state == "working"
    assert told.did == ("An operator asked for it. Tune: step 310 of 480, loss 0.431, 12 s left.")
    page = client_of(seeded).get("/").text
    assert f"<h2>Training {TASK}</h2>" in page
    assert "loss 0.431" in page


# The feed.


def test_the_feed_is_paged_without_holes_and_without_repetition(seeded: Desk) -> None:
    with seeded.database.transaction() as tx:
        add_gaps(tx, "flywheel.prompts", [(0, 5, 9)], seeded.clock())
    seeded.gateways.heard({"gateway": "one", "serving": {TASK: "support-v3-abc"}})
    whole = seeded.operations.activity(1_000)
    kinds = {entry.kind for entry in whole}
    assert kinds == {"decision", "evaluation", "training", "swap", "trouble"}
    assert whole == sorted(whole, key=lambda entry: entry.at, reverse=True)

    paged, before = [], None
    while page := seeded.operations.activity(3, before):
        paged += page
        before = page[-1].at
    assert paged == whole
    for kind in kinds:
        of_kind = [entry for entry in whole if entry.kind == kind]
        assert seeded.operations.activity(1_000, kind=kind) == of_kind


def test_the_activity_page_leads_to_older_pages(seeded: Desk) -> None:
    for number in range(60):
        tick(seeded, "retention", "failed", f"the disk is full, for the {number}th time")
    client = client_of(seeded)
    first = client.get("/activity").text
    assert first.count("<li class=") == 50
    assert "60th" not in first
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = client.get(older[1].replace("&amp;", "&")).text
    assert "the disk is full, for the 0th time" in second
    assert 'rel="next"' not in second
    for odd in ("/activity?before=rubbish", "/activity?before=9999-12-31T23:59:59-12:00"):
        assert client.get(odd).status_code == 200, odd
    only = client.get("/activity?kind=decision").text
    assert "grace rejected support-v2" in only
    assert "disk is full" not in only


def test_one_reason_that_fails_at_every_tick_is_one_line(desk: Desk) -> None:
    for _ in range(20):
        tick(desk, "relabel", "failed", "the teacher refuses our key")
    told = [entry.sentence for entry in desk.operations.activity(50)]
    assert told == ["relabel failed 20 times: the teacher refuses our key"]


def test_a_gateway_that_reports_the_same_again_is_no_news(desk: Desk) -> None:
    said = {"gateway": "one", "serving": {TASK: "support-v1-abc"}, "failed": {}}
    for _ in range(5):
        desk.gateways.heard(said)
    desk.gateways.heard({**said, "serving": {TASK: "support-v2-def"}})
    desk.gateways.heard({"gateway": "one", "serving": "rubbish", "failed": None})
    swaps = [entry.sentence for entry in desk.operations.activity(50, kind="swap")]
    assert swaps == [
        "1 gateway let the teacher answer",
        "1 gateway began to serve support-v2-def",
        "1 gateway began to serve support-v1-abc",
    ]


# The versions' history.


def test_the_champions_over_time_are_who_served_when_and_by_whom(desk: Desk) -> None:
    desk.approved()
    desk.approved()
    desk.operations.rollback(TASK, 1, reason="complaints", operator="grace")
    reigns = client_of(desk).get(f"/api/tasks/{TASK}/champions").json()
    assert [one["name"] for one in reigns] == ["support-v1", "support-v2", "support-v1"]
    assert [one["until"] for one in reigns] == [
        reigns[1]["since"], reigns[2]["since"], None,
    ]  # fmt: skip
    assert (reigns[2]["operator"], reigns[2]["reason"]) == ("grace", "complaints")
    page = client_of(desk).get(f"/tasks/{TASK}/versions").text
    assert "Champions over time" in page
    assert "rolled back" in page
    told = [event.sentence for event in desk.operations.show(TASK, 1).events]
    assert [one.split(" ")[0] for one in told] == [
        "Trained", "Evaluated", "Approved", "No", "Rolled",
    ]  # fmt: skip


def test_bars_of_champions_fill_the_time_without_overlap(desk: Desk) -> None:
    desk.approved()
    desk.clock.at += timedelta(hours=3)
    desk.approved()
    desk.clock.at += timedelta(hours=1)
    bars = reign_bars(desk.operations.champions(TASK), desk.clock.at)
    assert bars[0].at == 0.0
    assert bars[0].width == pytest.approx(75, abs=1)
    assert bars[1].at == pytest.approx(bars[0].width, abs=0.1)
    assert bars[1].at + bars[1].width == pytest.approx(100, abs=0.1)


# The charts.


def points(*minutes: float, **more: Any) -> Figures:
    history = tuple(
        HistoryPoint(at=START + timedelta(minutes=minute), coverage=0.5, spend=minute)
        for minute in minutes
    )
    return Figures(history=history, **more)


def test_a_chart_has_a_gap_where_nobody_looked() -> None:
    figures = points(0, 1, 2, 3, 30, 31, 32)
    chart = coverage_chart(figures, START + timedelta(minutes=64), ())
    assert chart is not None
    assert len(chart.lines) == 2
    assert chart.last == (50.0, 50.0)  # the axis goes on until now
    assert max(float(pair.split(",")[0]) for pair in chart.lines[0].split()) < 50


def test_a_chart_breaks_where_another_champion_began(desk: Desk) -> None:
    desk.clock.at = START
    desk.approved()
    reigns = desk.operations.champions(TASK)
    chart = coverage_chart(points(-2, -1, 1, 2), START + timedelta(minutes=2), reigns)
    assert chart is not None
    assert len(chart.lines) == 2
    assert [mark.text for mark in chart.marks] == ["v1"]


def test_spend_is_drawn_against_its_budget_or_says_that_it_is_far_above() -> None:
    near = spend_chart(points(0, 1, 2, 3, budget_today=5.0), START + timedelta(minutes=3))
    assert near is not None
    assert near.target_text == "budget 5.00"
    assert near.target is not None
    assert 0 < near.target < 100
    far = spend_chart(points(0, 1, 2, 3, budget_today=500.0), START + timedelta(minutes=3))
    assert far is not None
    assert far.target is None
    assert "500.00 lies above the axis" in far.note


def test_spend_that_begins_again_at_midnight_does_not_fall() -> None:
    history = tuple(
        HistoryPoint(at=START + timedelta(minutes=at), spend=spend)
        for at, spend in enumerate([7.0, 8.0, 0.1, 0.4])
    )
    chart = spend_chart(Figures(history=history, budget_today=9), START + timedelta(minutes=3))
    assert chart is not None
    assert len(chart.lines) == 2


def test_an_axis_that_does_not_begin_at_nothing_says_so() -> None:
    figures = Figures(history=make_history(START))
    chart = agreement_chart(figures, 0.97, START, ())
    assert chart is not None
    assert chart.note.startswith("The axis begins at 90 %")
    coverage = coverage_chart(figures, START, ())
    assert coverage is not None
    assert [row.text for row in coverage.rows] == ["0 %", "50 %", "100 %"]
    assert coverage.note == ""


def test_time_ticks_are_round_and_a_handful() -> None:
    for length in (3, 17, 58, 240, 1_440):
        minutes = [length * share / 20 for share in range(21)]
        start = datetime(2026, 3, 1, 12, 7, 31, tzinfo=UTC)
        history = tuple(
            HistoryPoint(at=start + timedelta(minutes=at), coverage=0.5) for at in minutes
        )
        chart = coverage_chart(Figures(history=history), history[-1].at, ())
        assert chart is not None
        assert 1 <= len(chart.columns) <= 6, length
        assert all(0 <= column.at <= 100 for column in chart.columns)


def test_every_chart_is_a_table_and_a_sentence_too(seeded: Desk) -> None:
    page = client_of(seeded).get("/").text
    for title in ("Trusted coverage", "Agreement with the teacher", "Spent on labels"):
        assert re.search(rf'<caption class="hidden">{title}[^<]*</caption>', page), title
    said = re.findall(r'<div class="plot" role="img" aria-label="([^"]+)"', page)
    assert len(said) == 3
    assert re.match(r"Trusted coverage: 90.% at \d\d:\d\d UTC, between 65.4.% and", said[0])
    assert page.count('<th scope="row">01 Mar') >= 3 * 10


# The pictures.


def test_the_pictures_of_the_console_are_there_small_and_used() -> None:
    docs = Path(__file__).parents[2] / "docs"
    pages = [docs.parent / "README.md", *docs.rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"images/(console-[a-z]+-(?:light|dark)\.png)", text))
    assert named
    for name in sorted(named):
        picture = docs / "images" / name
        assert picture.read_bytes().startswith(b"\x89PNG"), name
        assert picture.stat().st_size < 150_000, name
