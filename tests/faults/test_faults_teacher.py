"""A teacher on its bad days: what it costs, what is held, and that no storm comes of it."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from learner_rig import Rig, Scripted, open_bench, open_rig, scripted_teacher

from pipelines.errors import TeacherRefused
from service.learner.teacher import ATTEMPTS
from service.learner.teacher_failures import BREAKER_MAX_SECONDS

TEXTS = [f"message number {n} about it" for n in range(40)]
ANSWERS = dict.fromkeys(TEXTS, "refund")
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OUTAGE = timedelta(minutes=10)


class BadTeacher:
    """A server that answers every call as its `behave` says, and counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.behave: Callable[[BaseHTTPRequestHandler], None] = lambda call: reply(call, 200, b"")
        bad = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bad.calls += 1
                self.rfile.read(int(self.headers["content-length"]))
                bad.behave(self)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def reply(call: BaseHTTPRequestHandler, status: int, body: bytes, **more: str) -> None:
    """Headers are named as Python names them; `content_length` may lie."""
    call.send_response(status)
    headers = {"content_type": "application/json", "content_length": str(len(body)), **more}
    for name, value in headers.items():
        call.send_header(name.replace("_", "-"), value)
    call.end_headers()
    call.wfile.write(body)


def completion(content: Any, **about: Any) -> bytes:
    message = {"role": "assistant", "content": content, **about}
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


@pytest.fixture
def bad() -> Iterator[BadTeacher]:
    teacher = BadTeacher()
    thread = threading.Thread(target=teacher.server.serve_forever)
    thread.start()
    yield teacher
    teacher.server.shutdown()
    thread.join()
    teacher.server.server_close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as made:
        yield made


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of our own choosing are over at once; those that the teacher asks for are not."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)


def fill(rig: Rig, count: int) -> None:
    for number, text in enumerate(TEXTS[:count]):
        rig.sample(f"e-{number}", text)


PAST = format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({}, 0.0),
        ({"retry_after": "0.3"}, 0.3),
        ({"retry_after_ms": "300"}, 0.3),
        ({"retry_after_ms": "rubbish", "retry_after": "0.3"}, 0.3),
        ({"retry_after": PAST}, 0.0),
        ({"retry_after": "-5"}, 0.0),
        ({"retry_after": "nan"}, 0.0),
        ({"retry_after": "soon"}, 0.0),
        ({"retry_after": "Wed, 99 Foo 2026 99:99:99 GMT"}, 0.0),
        ({"retry_after": ""}, 0.0),
    ],
)
@pytest.mark.usefixtures("no_jitter")
def test_a_429_with_any_form_of_retry_after_is_waited_out_and_paid_once(
    headers: dict[str, str], least: float, rig: Rig, bad: BadTeacher
) -> None:
    fill(rig, 1)

    def behave(call: BaseHTTPRequestHandler) -> None:
        if bad.calls == 1:
            reply(call, 429, b"{}", **headers)
        else:
            reply(call, 200, completion("refund"))

    bad.behave = behave
    started = datetime.now(UTC)
    with open_bench(rig, base_url=bad.url) as bench:
        bench.relabel.run()
    took = (datetime.now(UTC) - started).total_seconds()
    assert rig.labels() == {"e-0": "refund"}
    assert bad.calls == 2
    assert took >= least


@pytest.mark.parametrize("value", ["1e12", "inf", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_absurd_retry_after_stops_all_calls_for_minutes_and_no_longer(
    value: str, tmp_path: Path, bad: BadTeacher
) -> None:
    at = [NOON]
    with open_rig(tmp_path) as rig:
        rig.now = lambda: at[0]
        fill(rig, 5)
        bad.behave = lambda call: reply(call, 429, b"{}", retry_after=value)
        with open_bench(rig, base_url=bad.url, max_concurrency=1) as bench:
            bench.relabel.run()
            assert bad.calls == 1
            assert bench.teacher.why_not() is not None
            at[0] += timedelta(seconds=BREAKER_MAX_SECONDS + 1)
            assert bench.teacher.why_not() is None
    assert set(rig_statuses(tmp_path)) == {"pending"}


def rig_statuses(folder: Path) -> list[str]:
    with open_rig(folder) as rig:
        return list(rig.statuses().values())


NONSENSE = {
    "not a completion": b'{"object": "list", "data": []}',
    "null": b"null",
    "a number": b"42",
    "a page": b"<html>sign in</html>",
    "not even text": b"\xff\xfe\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_with_status_200_is_held_and_never_asked_again(
    body: bytes, rig: Rig, bad: BadTeacher
) -> None:
    fill(rig, 1)
    bad.behave = lambda call: reply(call, 200, body)
    with open_bench(rig, base_url=bad.url) as bench:
        for _ in range(3):
            bench.relabel.run()
        assert [held.event_id for held in bench.held.list()] == ["e-0"]
    assert bad.calls == 1
    assert rig.labels() == {}


@pytest.mark.parametrize(
    "body",
    [
        completion(None, refusal="I cannot help with that."),
        completion(""),
        completion("I'm sorry, but I can't assist with that."),
        completion("refund, or maybe delivery"),
        completion("reimbursement"),
        b'{"choices": []}',
    ],
)
def test_a_refusal_and_an_answer_outside_the_label_set_are_paid_once_and_are_no_label(
    body: bytes, rig: Rig, bad: BadTeacher
) -> None:
    fill(rig, 1)
    bad.behave = lambda call: reply(call, 200, body)
    with open_bench(rig, base_url=bad.url) as bench:
        bench.relabel.run()
        bench.relabel.run()
        assert bench.held.list() == []
    assert bad.calls == 1
    assert rig.labels() == {}
    assert rig.statuses() == {"e-0": "failed"}


def hang_up_at_once(call: BaseHTTPRequestHandler) -> None:
    call.close_connection = True


def hang_up_in_the_reply(call: BaseHTTPRequestHandler) -> None:
    reply(call, 200, completion("refund")[:20], content_length="400")
    call.close_connection = True


def hang_up_in_the_headers(call: BaseHTTPRequestHandler) -> None:
    call.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-ty")
    call.close_connection = True


@pytest.mark.parametrize("behave", [hang_up_at_once, hang_up_in_the_reply, hang_up_in_the_headers])
def test_a_teacher_that_hangs_up_may_have_charged_so_the_call_is_held(
    behave: Callable[[BaseHTTPRequestHandler], None], rig: Rig, bad: BadTeacher
) -> None:
    fill(rig, 1)
    bad.behave = behave
    with open_bench(rig, base_url=bad.url) as bench:
        for _ in range(3):
            bench.relabel.run()
        assert len(bench.held.list()) == 1
    assert bad.calls == 1


def test_a_key_that_is_revoked_while_running_costs_nothing_and_loses_nothing(
    tmp_path: Path,
) -> None:
    at = [NOON]
    with scripted_teacher(tmp_path, ANSWERS) as teacher, open_rig(tmp_path / "data") as rig:
        rig.now = lambda: at[0]
        fill(rig, 10)
        with open_bench(rig, base_url=teacher.url, max_concurrency=2) as bench:
            bench.relabel.run()
            for number in range(10, 30):
                rig.sample(f"e-{number}", TEXTS[number])
            teacher.behave(api_key="another")
            with pytest.raises(TeacherRefused, match=r"teacher\.api_key"):
                bench.relabel.run()
            assert bench.teacher.why_not() is not None
            assert len(teacher.bills()) == 10
            assert list(rig.statuses().values()).count("pending") == 20

            teacher.behave(api_key=None)
            at[0] += timedelta(seconds=BREAKER_MAX_SECONDS)
            bench.relabel.run()
        assert len(rig.labels()) == 30
        check_bills(teacher, 30)


def check_bills(teacher: Scripted, count: int) -> None:
    bills = [bill["messages_sha256"] for bill in teacher.bills()]
    assert len(bills) == len(set(bills)) == count


@pytest.mark.parametrize("kind", ["503", "429", "unreachable"])
@pytest.mark.usefixtures("no_jitter")
def test_ten_minutes_of_outage_bring_no_storm_and_then_everything_goes_on(
    kind: str, tmp_path: Path, bad: BadTeacher
) -> None:
    """A simulated clock: a tick every five seconds, as the schedule has it."""
    at, attempts = [NOON], 0
    with open_rig(tmp_path) as rig:
        rig.now = lambda: at[0]
        fill(rig, 40)
        bad.behave = lambda call: reply(call, int(kind), b"{}")
        url = "http://127.0.0.1:9/v1" if kind == "unreachable" else bad.url
        with open_bench(rig, base_url=url) as bench:
            while at[0] < NOON + OUTAGE:
                bench.relabel.run()
                at[0] += timedelta(seconds=5)
            attempts = len(bench.calls)
            concurrency = rig.settings.teacher.max_concurrency
            # Pauses double, so there are few; after each, those under way try to their end.
            assert attempts <= 12 * ATTEMPTS * concurrency, attempts
        assert set(rig.statuses().values()) == {"pending"}

        bad.behave = lambda call: reply(call, 200, completion("refund"))
        at[0] += timedelta(seconds=BREAKER_MAX_SECONDS)
        before = bad.calls
        with open_bench(rig, base_url=bad.url) as bench:
            bench.relabel.run()
        assert len(rig.labels()) == 40
        assert bad.calls - before == 40


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
def test_a_clock_that_jumps_an_hour_stops_the_teacher_for_minutes_at_most(
    jump: timedelta, tmp_path: Path, bad: BadTeacher
) -> None:
    at = [NOON]
    with open_rig(tmp_path) as rig:
        rig.now = lambda: at[0]
        fill(rig, 20)
        bad.behave = lambda call: reply(call, 429, b"{}", retry_after="120")
        with open_bench(rig, base_url=bad.url, max_concurrency=1) as bench:
            bench.relabel.run()
            assert bench.teacher.why_not() is not None
            at[0] += jump
            at[0] += timedelta(seconds=BREAKER_MAX_SECONDS)
            bad.behave = lambda call: reply(call, 200, completion("refund"))
            bench.relabel.run()
    assert sorted(rig_labels(tmp_path)) == sorted(f"e-{n}" for n in range(20))


def rig_labels(folder: Path) -> list[str]:
    with open_rig(folder) as rig:
        return list(rig.labels())
