"""An operator is told once when needed, and once when it is over, whatever the webhook does."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any, get_args

import msgspec
import pytest
from console_server import TOKEN, seed
from operating import TASK, Desk, open_desk
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.testclient import TestClient
from structlog.testing import capture_logs
from webhook import Webhook, running_webhook

from pipelines.errors import SettingsError
from pipelines.tally import tally
from pipelines.types import Estimate, Message, PromptEvent, SourceOffset
from service.care.check import find_problems, lines
from service.console.app import console_app
from service.metrics.learner import LearnerMetrics
from service.operator.notify import SETTLED, Notifier, Seen
from service.operator.status import Figures, HoldReason, Unusable
from service.sections import NotifyKind, NotifySettings
from service.settings import load_settings
from service.terminal import status_lines
from storage.folder import DataFolder
from storage.ledger import Amounts
from storage.past import add_past
from storage.runs import end_run, start_run
from storage.shapes import add_shapes
from storage.traffic import add_traffic

CONSOLE = "https://flywheel.example"


@dataclass
class Post:
    """A desk whose needs are told to a webhook."""

    desk: Desk
    hook: Webhook
    options: dict[str, Any]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.metrics = LearnerMetrics(self.registry)
        self.notifier = self.restarted()

    def restarted(self) -> Notifier:
        """As after a new start of the learner: all it knows is on disk."""
        notify = NotifySettings(url=SecretStr(self.hook.url), **self.options)
        settings = self.desk.settings.model_copy(update={"notify": notify})
        board, operations = self.desk.board, self.desk.operations
        self.notifier = Notifier(
            settings,
            lambda: Seen.of(operations.status().needs, teacher_refuses=board.teacher_refuses),
            self.metrics,
            console=CONSOLE,
            now=self.desk.clock,
            look_seconds=0.05,
        )
        return self.notifier

    def tick(self, later: timedelta = timedelta(0)) -> list[dict[str, Any]]:
        """One look; returns what came of it, without the greeting."""
        self.desk.clock.at += later
        self.desk.operations.note_change()
        before = len(self.hook.accepted)
        self.notifier.tick()
        return [one for one in self.hook.accepted[before:] if one.get("kind") != "hello"]

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"flywheel_{name}", labels)


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with running_webhook() as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, hook: Webhook) -> Iterator[Callable[..., Post]]:
    with open_desk(tmp_path) as desk:
        yield lambda **options: Post(desk=desk, hook=hook, options=options)


@pytest.fixture
def post(make: Callable[..., Post]) -> Post:
    made = make()
    made.tick()  # the greeting
    return made


def test_a_new_address_is_greeted_once_so_that_its_owner_sees_that_it_works(post: Post) -> None:
    (greeting,) = post.hook.accepted
    assert greeting["kind"] == "hello"
    post.restarted()
    assert post.tick() == []
    assert len(post.hook.accepted) == 1


def test_a_version_that_waits_is_told_once_with_the_link_to_its_page(post: Post) -> None:
    version, report = post.desk.candidate()
    (told,) = post.tick()
    assert told["source"] == "flywheel"
    assert (told["kind"], told["state"], told["task"]) == ("approval", "needed", TASK)
    assert told["link"] == f"{CONSOLE}/tasks/{TASK}/versions/{version.number}"
    assert "waits for your approval" in told["title"]
    assert post.tick() == []
    assert post.value("operator_needed", kind="approval") == 1

    post.desk.operations.approve(TASK, version.number, report=report, operator="ada")
    (over,) = post.tick()
    assert (over["state"], over["id"]) == ("over", told["id"])
    assert post.tick(later=timedelta(days=1)) == []
    assert post.value("operator_needed", kind="approval") == 0
    assert post.value("notifications_total", kind="approval", outcome="sent") == 2


def test_a_version_that_would_serve_nothing_is_told_as_such(post: Post) -> None:
    desk = post.desk
    desk.evaluate(desk.train(), threshold=None)
    (told,) = post.tick()
    assert told["kind"] == "approval"
    assert "It would answer nothing by itself" in told["text"]


def test_after_a_restart_nothing_is_told_again(post: Post) -> None:
    post.desk.candidate()
    assert len(post.tick()) == 1
    post.restarted()
    assert post.tick() == []
    assert post.tick(later=timedelta(hours=3)) == []


def test_what_was_owed_at_the_end_is_told_after_the_restart(post: Post) -> None:
    post.hook.status = 503
    post.desk.candidate()
    assert post.tick() == []
    post.restarted()
    post.hook.status = 200
    assert [told["kind"] for told in post.tick()] == ["approval"]


def test_two_versions_are_two_occasions(post: Post) -> None:
    first, report = post.desk.candidate()
    post.tick()
    post.desk.operations.approve(TASK, first.number, report=report, operator="ada")
    post.tick()
    post.desk.candidate()
    (told,) = post.tick()
    assert "support-v2" in told["title"]


def test_a_failing_webhook_is_tried_again_later_and_later(post: Post) -> None:
    post.hook.status = 500
    post.desk.candidate()
    tried, start = [], post.desk.clock.at
    while post.desk.clock.at - start < timedelta(seconds=200):
        post.tick()
        tried.append(len(post.hook.requests))
    attempts = tried[-1] - tried[0] + 1
    assert 6 <= attempts <= 9, "2, 4, 8, ... seconds, less a half at most"
    assert post.value("notifications_total", kind="approval", outcome="failed") == attempts
    assert post.value("notifications_owed") == 1
    post.hook.status = 200
    assert [told["kind"] for told in post.tick(later=timedelta(minutes=5))] == ["approval"]
    assert post.value("notifications_owed") == 0


def test_what_is_over_before_anybody_could_be_told_is_not_told(post: Post) -> None:
    post.hook.status = 500
    version, report = post.desk.candidate()
    post.tick()
    post.desk.operations.approve(TASK, version.number, report=report, operator="ada")
    post.hook.status = 200
    assert post.tick(later=timedelta(minutes=5)) == []


def test_a_redirect_is_not_followed(post: Post) -> None:
    post.hook.status = 302
    post.desk.candidate()
    before = len(post.hook.requests)
    post.tick()
    assert len(post.hook.requests) == before + 1
    assert post.value("notifications_owed") == 1


def test_every_link_leads_to_a_page_that_asks_for_a_login_and_then_is_there(post: Post) -> None:
    seed(post.desk)
    post.desk.board.say_of_ingest(reason="poison")
    post.desk.board.note_call("refused")
    low = Estimate(value=0.9, low=0.87, high=0.93, n=400)
    post.desk.board.show(TASK, Figures(served_agreement=low))
    links = {told["link"].removeprefix(CONSOLE) for told in post.tick()}
    assert len(links) >= 5
    app = console_app(post.desk.operations, TOKEN, post.desk.settings)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as browser:
        for link in links:
            page, _, anchor = link.partition("#")
            assert browser.get(page, headers={"accept": "text/html"}).status_code != 200
            shown = browser.get(page, headers={"authorization": f"Bearer {TOKEN}"})
            assert shown.status_code == 200, link
            assert not anchor or f'id="{anchor}"' in shown.text, link


def test_answers_that_are_no_label_are_told_with_their_shape_once_and_when_over(post: Post) -> None:
    shape, until = "reasoning, then 40 characters of text", datetime(2026, 3, 1, 13, 5, tzinfo=UTC)
    post.desk.board.note_unusable(TASK, Unusable(4, shape, None))
    assert post.tick() == []
    post.desk.board.note_unusable(TASK, Unusable(23, shape, until))
    (told,) = post.tick()
    assert told["kind"] == "unusable_answers"
    assert told["title"] == "The last 23 answers of the teacher were no label of support"
    assert f"The last one: {shape}." in told["text"]
    assert "Nothing is bought for it until 13:05 UTC" in told["text"]
    assert post.tick() == []
    lines = list(status_lines(msgspec.to_builtins(post.desk.operations.status())))
    assert lines[0] == f"! {told['title']}: the last one: {shape}"
    assert lines[1].startswith("  They were paid for.")


def test_what_the_teacher_said_is_for_operators_and_not_for_the_webhook(post: Post) -> None:
    post.desk.board.note_call("refused", "the teacher said 400: bad, parameter seed")
    (told,) = post.tick()
    assert told["kind"] == "teacher_refused"
    assert "seed" not in json.dumps(told)
    (need,) = [one for one in post.desk.operations.status().needs if one.kind == told["kind"]]
    assert (
        need.sentence == "The teacher refuses our calls: the teacher said 400: bad, parameter seed"
    )


def test_requests_that_go_past_the_student_are_told_with_the_reasons(post: Post) -> None:
    def came(asked: int, **past: int) -> None:
        minute = post.desk.clock().replace(second=0, microsecond=0)
        event = PromptEvent(
            event_id="e", task=TASK, model="desk", occurred_at=minute,
            messages=(Message("user", "hi"),), source=SourceOffset("t", 0, 0),
        )  # fmt: skip
        with post.desk.database.transaction() as tx:
            add_traffic(tx, tally([(event, "")] * asked))
            add_past(tx, {(minute, TASK, reason): count for reason, count in past.items()})

    came(940, format=60)
    assert post.tick() == [], "six in a hundred"
    came(0, tools=3, format=99)
    (told,) = post.tick()
    assert told["kind"] == "requests_past"
    assert told["title"] == "162 of 1,102 requests for support went past its student"
    assert (
        "a response_format that its answers do not have (159), tools that the answer may call (3)"
        in (told["text"])
    )


def test_a_student_that_the_app_would_not_understand_is_told_before_it_is_trained(
    post: Post,
) -> None:
    three = "{label: text, reason: text}"
    with post.desk.database.transaction() as tx:
        add_shapes(tx, {(post.desk.clock().date(), TASK, three): 40})
    (told,) = post.tick()
    assert told["kind"] == "answer_shape"
    assert f"The app receives {three} (40 of the newest 40 answers)" in told["text"]


def test_the_newest_answers_decide_what_the_app_understands(post: Post) -> None:
    today = post.desk.clock().date()
    before = today - timedelta(days=1)
    with post.desk.database.transaction() as tx:
        add_shapes(tx, {(before, TASK, "[text]"): 900, (today, TASK, "text"): 800})
    assert post.tick() == []


def test_a_webhook_that_hangs_holds_nothing_up(post: Post) -> None:
    """What it is told about works on while it hangs."""
    post.hook.hangs = Event()
    post.desk.candidate()
    stop = Event()
    thread = Thread(target=post.notifier.run, args=(stop,))
    before = len(post.hook.requests)
    thread.start()
    post.hook.wait_for(lambda: len(post.hook.requests) > before)
    started = monotonic()
    post.desk.operations.reject(TASK, 1, reason="worse on vouchers", operator="ada")
    assert monotonic() - started < 4, "the desk waited for the webhook"
    stop.set()
    post.hook.hangs.set()
    thread.join(20)
    assert not thread.is_alive()


def test_what_breaks_inside_does_not_end_the_thread(post: Post) -> None:
    looks = []

    def look() -> Any:
        looks.append(1)
        raise RuntimeError("broken")

    notifier = Notifier(
        post.desk.settings,
        look,
        post.metrics,
        console=CONSOLE,
        look_seconds=0.01,
    )
    stop = Event()
    thread = Thread(target=notifier.run, args=(stop,))
    with capture_logs():
        thread.start()
        post.hook.wait_for(lambda: len(looks) > 3)
    stop.set()
    thread.join(10)


def test_slack_gets_its_own_shape(make: Callable[..., Post]) -> None:
    post = make(format="slack")
    post.desk.candidate()
    post.tick()
    told = post.hook.accepted[-1]
    assert set(told) == {"text", "blocks"}
    (block,) = told["blocks"]
    assert block == {"type": "section", "text": {"type": "mrkdwn", "text": told["text"]}}
    assert told["text"].startswith("*support-v1 waits for your approval*\n")
    link = f"{CONSOLE}/tasks/{TASK}/versions/1"
    assert told["text"].endswith(f"<{link}|Open the console>")


def test_only_the_kinds_that_are_wanted_are_told(make: Callable[..., Post]) -> None:
    post = make(kinds=["budget"], when_over=False)
    post.desk.candidate()
    assert post.tick() == []
    assert post.value("operator_needed", kind="approval") == 1, "shown, though not told"


def test_trainings_that_fail_again_and_again_are_told_one_failure_is_not(post: Post) -> None:
    _fail_training(post.desk, "r1")
    assert post.tick() == []
    _fail_training(post.desk, "r2")
    (told,) = post.tick()
    assert told["kind"] == "training_failed"
    assert "failed 2 times" in told["title"]
    _fail_training(post.desk, "r3")
    assert post.tick() == []
    post.desk.train()
    assert post.tick() == []
    (over,) = post.tick(later=SETTLED)
    assert over["state"] == "over"


def test_an_automatic_rollback_is_told_and_a_persons_is_not(post: Post) -> None:
    for _ in range(2):
        post.desk.approved()
    post.tick()
    post.desk.operations.automatic_rollback(TASK, "agreement fell")
    (told,) = post.tick()
    assert told["kind"] == "rollback"
    assert told["link"].endswith("/versions/1")
    post.desk.approved()
    post.tick()
    post.desk.operations.rollback(TASK, 2, reason="complaints", operator="ada")
    assert [told["kind"] for told in post.tick()] == []


def test_agreement_below_the_target_is_told(post: Post) -> None:
    post.desk.approved()
    post.tick()
    low = Estimate(value=0.9, low=0.87, high=0.93, n=400)
    post.desk.board.show(TASK, Figures(served_agreement=low))
    (told,) = post.tick()
    assert told["kind"] == "agreement"
    assert "93.0%" in told["text"]


def test_a_budget_that_is_nearly_spent_is_told_once_a_day(post: Post) -> None:
    budget = post.desk.settings.budget
    _buy(post, "a", money=budget.label_money * 0.8)
    assert post.tick() == []
    _buy(post, "b", money=budget.label_money * 0.15)
    (told,) = post.tick()
    assert told["kind"] == "budget"
    assert post.tick(later=timedelta(minutes=10)) == []
    assert post.tick(later=timedelta(days=1)) == []
    _buy(post, "c", money=budget.label_money * 0.95)
    assert [told["kind"] for told in post.tick()] == ["budget"]


@pytest.mark.parametrize(
    ("reason", "tells"), [("disk", True), ("poison", True), ("operator", False)]
)
def test_ingest_held_by_itself_is_told(post: Post, reason: HoldReason, tells: bool) -> None:
    post.desk.board.say_of_ingest(reason=reason)
    assert [told["kind"] for told in post.tick()] == ["ingest_held"] * tells
    post.desk.board.say_of_ingest(reason=None)
    post.tick()
    assert [told["text"] for told in post.tick(later=SETTLED)] == ["Ingest goes on."] * tells


def test_what_comes_and_goes_is_one_occasion(post: Post) -> None:
    told = []
    for _ in range(20):
        post.desk.board.say_of_ingest(reason=None if post.desk.board.ingest.reason else "disk")
        told += post.tick(later=timedelta(seconds=30))
    assert [one["state"] for one in told] == ["needed"]


def test_a_teacher_that_refuses_is_told_and_a_restart_is_no_sign_that_it_is_over(
    post: Post,
) -> None:
    post.desk.board.note_call("refused")
    (told,) = post.tick()
    assert told["kind"] == "teacher_refused"
    post.desk.board.teacher_refuses = None
    post.restarted()
    assert post.tick(later=timedelta(hours=1)) == []
    assert post.tick(later=timedelta(hours=1)) == []
    post.desk.board.note_call("refused")
    assert post.tick() == []
    post.desk.board.note_call("rate_limited")
    assert post.tick() == []
    post.desk.board.note_call("received")
    post.tick()
    (over,) = post.tick(later=SETTLED)
    assert over["text"] == "The teacher answers again."


def test_held_calls_are_told_once_however_many_follow(post: Post) -> None:
    for number in range(3):
        post.desk.hold(f"e{number}", detail="no answer")
        told = post.tick()
        assert len(told) == (1 if number == 0 else 0)
    for call in post.desk.operations.unknown_outcomes():
        post.desk.operations.drop(call.key, operator="ada")
    post.tick()
    (over,) = post.tick(later=SETTLED)
    assert over["link"] == f"{CONSOLE}/unknown-outcomes"


def test_on_a_full_disk_it_is_told_all_the_same(post: Post, tmp_path: Path) -> None:
    file = DataFolder(tmp_path).notifications
    file.unlink()
    file.mkdir()  # no write succeeds
    post.desk.board.say_of_ingest(reason="disk")
    with capture_logs() as said:
        assert [told["kind"] for told in post.tick()] == ["ingest_held"]
    assert "notifications_not_written" in [line["event"] for line in said]
    assert post.tick() == []


def test_a_damaged_record_is_begun_anew(post: Post) -> None:
    post.desk.candidate()
    post.tick()
    DataFolder(post.desk.folder).notifications.write_text("{")
    with capture_logs() as said:
        post.restarted()
    assert [line["event"] for line in said] == ["notifications_unreadable"]
    assert [told["kind"] for told in post.tick()] == ["approval"]


def test_without_an_address_nothing_is_told_and_the_need_is_shown(post: Post) -> None:
    post.hook.url = ""
    post.restarted()
    post.desk.candidate()
    before = len(post.hook.requests)
    assert post.tick() == []
    assert len(post.hook.requests) == before
    assert post.value("operator_needed", kind="approval") == 1


def test_the_address_is_in_no_log_no_file_and_no_output(post: Post) -> None:
    post.hook.status = 500
    post.desk.candidate()
    with capture_logs() as said:
        post.tick()
        post.hook.status = 200
        post.tick(later=timedelta(minutes=5))
    settings = post.desk.settings.model_copy(
        update={"notify": NotifySettings(url=SecretStr(post.hook.url))}
    )
    everything = (
        json.dumps(said)
        + DataFolder(post.desk.folder).notifications.read_text()
        + "\n".join(lines(settings))
    )
    assert "notification_failed" in everything
    assert "/hook/secret" not in everything
    assert DataFolder(post.desk.folder).notifications.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x",
        "ftp://127.0.0.1/x",
        "https://user:password@hooks.example/x",
        "hooks.example/x",
        "https:///x",
    ],
)
def test_an_address_that_is_not_safe_is_refused_without_being_shown(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"notify\.url: must look like https") as refused:
        load_settings(data_dir=tmp_path, notify={"url": url})
    assert url not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://hooks.example/x?y=1", "http://127.0.0.1:9/x", "http://localhost/x"]
)
def test_https_and_this_host_are_taken(url: str) -> None:
    assert NotifySettings(url=SecretStr(url)).url.get_secret_value() == url


def test_check_names_what_would_not_arrive(tmp_path: Path) -> None:
    url = "https://hooks.slack.com/services/a/b"
    settings = load_settings(data_dir=tmp_path, notify={"url": url, "kinds": []})
    found = {problem.setting for problem in find_problems(settings)}
    assert {"notify.format", "notify.kinds", "learner.public_url"} <= found
    settings = load_settings(data_dir=tmp_path)
    assert not {"notify.format", "learner.public_url"} & {
        problem.setting for problem in find_problems(settings)
    }


def test_the_page_about_it_names_every_kind_and_shows_what_is_sent(post: Post) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "get-told.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(get_args(NotifyKind))
    shown = json.loads(re.findall(r"```json\n(.*?)```", page, re.S)[0])
    post.desk.candidate()
    (told,) = post.tick()
    assert list(shown) == list(told)
    assert {name: shown[name] for name in ("source", "state", "kind", "task", "text")} == {
        name: told[name] for name in ("source", "state", "kind", "task", "text")
    }


def _fail_training(desk: Desk, run_id: str) -> None:
    with desk.database.transaction() as tx:
        start_run(
            tx,
            run_id=run_id,
            task=TASK,
            dataset="0" * 64,
            recipe="head",
            reason="the schedule",
            now=desk.clock(),
        )
        end_run(tx, run_id=run_id, status="failed", failure="out of memory", now=desk.clock())


def _buy(post: Post, key: str, *, money: float) -> None:
    now = post.desk.clock()
    amounts = Amounts(tokens=1, money=money)
    post.desk.ledger.intend(key, event_id=key, request=b"{}", reserve=amounts, now=now)
    post.desk.ledger.receive(key, reply=b"{}", spent=amounts, now=now)
