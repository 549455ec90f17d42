"""Labels are bought once, within the budget, from a real (scripted) teacher."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from learner_rig import Bench, Rig, Scripted, open_bench, open_rig, scripted_teacher

from pipelines.ask import ask
from pipelines.errors import Refused, TeacherRefused
from pipelines.types import Message, SampleReason
from service.demo.scripted_teacher import Behaviour
from service.learner.teacher_failures import BREAKER_FAILURES
from storage.ledger import Amounts
from storage.samples import pending_samples

LABELS = ("refund", "delivery", "cancel")
ANSWERS = {f"message number {n} about it": LABELS[n % 3] for n in range(60)}
TEXTS = list(ANSWERS)


@pytest.fixture(scope="module")
def shared_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted_teacher(tmp_path_factory.mktemp("teacher"), ANSWERS) as teacher:
        yield teacher


@pytest.fixture
def teacher(shared_teacher: Scripted) -> Scripted:
    """As it was started, and nothing on its bill."""
    shared_teacher.behave(**Behaviour().model_dump())
    with shared_teacher.billing.open("w"):
        pass
    return shared_teacher


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    sections = getattr(request, "param", {})
    with open_rig(tmp_path, **sections) as made:
        yield made


@pytest.fixture
def bench(rig: Rig, teacher: Scripted) -> Iterator[Bench]:
    with open_bench(rig, base_url=teacher.url) as made:
        yield made


def fill(rig: Rig, count: int) -> None:
    for number, text in enumerate(TEXTS[:count]):
        rig.sample(f"e-{number}", text)


def test_pending_samples_get_the_teachers_labels(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 30)
    result = bench.relabel.run()
    assert (result.outcome, result.detail) == ("done", "30 labels")
    assert bench.rig.labels() == {f"e-{n}": ANSWERS[TEXTS[n]] for n in range(30)}
    assert set(bench.rig.statuses().values()) == {"labelled"}
    assert len(teacher.bills()) == 30
    assert bench.relabel.run().outcome == "nothing"
    assert len(teacher.bills()) == 30


def test_label_carries_its_teacher_terms_and_cost(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 1)
    bench.relabel.run()
    (bill,) = teacher.bills()
    row = bench.rig.rows("SELECT source, teacher_model, terms, cost, ledger_key FROM labels")[0]
    expected = (bill["prompt_tokens"] * 1000 + bill["completion_tokens"] * 2000) / 1e6
    assert row[:3] == ("bought", "scripted-teacher", "scripted")
    assert row[3] == pytest.approx(expected)
    assert bench.ledger.spent_on(bench.rig.now()).money == pytest.approx(expected)
    call = bench.ledger.call(row[4])
    assert call is not None
    assert call.step == "received"


def test_equal_prompts_are_paid_once_in_a_batch_and_later(bench: Bench, teacher: Scripted) -> None:
    for number in range(5):
        bench.rig.sample(f"e-{number}", TEXTS[0])
    bench.relabel.run()
    bench.rig.sample("later", TEXTS[0])
    bench.relabel.run()
    assert len(bench.rig.labels()) == 6
    assert len(teacher.bills()) == 1
    spent = bench.ledger.spent_on(bench.rig.now()).money
    assert bench.rig.scalar("SELECT sum(cost) FROM labels") == pytest.approx(spent)


def test_evidence_is_bought_before_training_data(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 10)
    bench.rig.sample("judge", TEXTS[20], reason=SampleReason.HELD_OUT)
    bench.rig.sample("audit", TEXTS[21], reason=SampleReason.AUDIT)
    with bench.rig.database.snapshot() as tx:
        first = [sample.event_id for sample in pending_samples(tx, ["support"], 3)]
    assert first == ["audit", "judge", "e-0"]


def test_samples_of_a_task_that_is_gone_block_nothing(bench: Bench, teacher: Scripted) -> None:
    for number in range(70):  # more than a batch
        bench.rig.sample(f"gone-{number}", TEXTS[0], task="former")
    fill(bench.rig, 3)
    assert bench.relabel.run().detail == "3 labels"


def crash_after(bench: Bench, *, received: bool) -> str:
    """A learner that died between sending a call and applying its answer."""
    message = (Message("user", TEXTS[0]),)
    question = ask("e-0", message, bench.rig.task, bench.teacher.policy)
    if received:
        bench.teacher.answer([question])  # in the ledger, and nowhere else
    else:
        bench.ledger.intend(
            question.key,
            event_id="e-0",
            request=b"{}",
            reserve=Amounts(tokens=1),
            now=bench.rig.now(),
        )
    return question.key


def test_answer_received_before_a_crash_is_applied_without_paying(
    rig: Rig, teacher: Scripted
) -> None:
    fill(rig, 1)
    with open_bench(rig, base_url=teacher.url) as before:
        crash_after(before, received=True)
    assert rig.labels() == {}
    with open_bench(rig, base_url=teacher.url) as after:
        after.relabel.recover()
        after.relabel.run()
        assert after.calls == []
    assert rig.labels() == {"e-0": ANSWERS[TEXTS[0]]}
    assert rig.scalar("SELECT sum(cost) FROM labels") > 0
    assert len(teacher.bills()) == 1


def test_call_in_flight_at_a_crash_is_held_and_never_sent_again(
    bench: Bench, teacher: Scripted
) -> None:
    fill(bench.rig, 1)
    key = crash_after(bench, received=False)
    bench.relabel.recover()
    assert bench.rig.statuses() == {"e-0": "held"}
    for _ in range(3):
        bench.relabel.run()
    assert teacher.bills() == []
    assert [call.key for call in bench.held.list()] == [key]


def test_server_error_is_held_until_it_is_released(bench: Bench, teacher: Scripted) -> None:
    bench.rig.sample("e-0", TEXTS[0])
    bench.rig.sample("twin", TEXTS[0])  # an equal prompt shares its fate
    teacher.behave(rate_500=1.0)
    result = bench.relabel.run()
    assert (result.outcome, result.detail) == (
        "nothing",
        "0 labels, 2 calls with an unknown outcome",
    )
    assert set(bench.rig.statuses().values()) == {"held"}
    teacher.behave(rate_500=0.0)
    bench.relabel.run()
    assert bench.calls == ["unknown"], "nothing was sent again"
    (held,) = bench.held.list()
    assert (held.task, held.detail) == ("support", "the teacher said 500")
    bench.held.release(held.key)
    bench.relabel.run()
    assert set(bench.rig.labels()) == {"e-0", "twin"}
    assert bench.held.list() == []
    assert bench.ledger.spent_on(bench.rig.now()).calls == 2, "it may have been paid twice"


def test_dropped_call_is_never_asked_again(bench: Bench, teacher: Scripted) -> None:
    bench.rig.sample("e-0", TEXTS[0])
    bench.rig.sample("twin", TEXTS[0])
    teacher.behave(rate_500=1.0)
    bench.relabel.run()
    teacher.behave(rate_500=0.0)
    (held,) = bench.held.list()
    bench.held.drop(held.key)
    bench.relabel.run()
    assert set(bench.rig.statuses().values()) == {"failed"}
    assert teacher.bills() == []
    with pytest.raises(Refused, match="no held call"):
        bench.held.release(held.key)


def test_call_without_an_answer_in_time_is_held(rig: Rig, teacher: Scripted) -> None:
    rig.sample("e-0", TEXTS[0])
    teacher.behave(hang_rate=1.0)
    with open_bench(rig, base_url=teacher.url, timeout=timedelta(seconds=0.5)) as bench:
        bench.relabel.run()
        teacher.behave(hang_rate=0.0)
        bench.relabel.run()
        assert [call.detail for call in bench.held.list()] == ["no answer within the time limit"]
    assert rig.statuses() == {"e-0": "held"}
    assert [bill["status"] for bill in teacher.bills()] == ["unanswered"]


def test_rate_limited_calls_are_sent_again_in_one_layer(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 12)
    teacher.behave(rate_429=0.4, retry_after_s=0.05, seed=3)
    for _ in range(10):
        if len(bench.rig.labels()) == 12:
            break
        bench.relabel.run()
    assert len(bench.rig.labels()) == 12
    assert len(teacher.bills()) == 12
    assert bench.calls.count("rate_limited") >= 3
    assert bench.ledger.spent_on(bench.rig.now()).calls == 12, "what was refused costs nothing"


def test_teacher_that_cannot_be_reached_costs_nothing(rig: Rig) -> None:
    rig.sample("e-0", TEXTS[0])
    with open_bench(rig, base_url="http://127.0.0.1:9/v1") as bench:
        assert bench.relabel.run().outcome == "nothing"
        assert rig.statuses() == {"e-0": "pending"}
        assert bench.ledger.spent_on(rig.now()).calls == 0


def test_wrong_key_says_what_to_check_and_stops_asking(rig: Rig, teacher: Scripted) -> None:
    fill(rig, 20)
    teacher.behave(api_key="right")
    try:
        with open_bench(rig, base_url=teacher.url) as bench:
            with pytest.raises(TeacherRefused, match=r"401: check teacher.api_key"):
                bench.relabel.run()
            sent = len(bench.calls)
            assert sent <= rig.settings.teacher.max_concurrency
            result = bench.relabel.run()
            assert result.outcome == "nothing"
            assert "next try in" in result.detail
            assert len(bench.calls) == sent
    finally:
        teacher.behave(api_key=None)
    assert set(rig.statuses().values()) == {"pending"}


def test_answer_outside_the_label_set_is_no_label(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 8)
    teacher.behave(nonsense_rate=1.0)
    result = bench.relabel.run()
    assert "8 answers that are no label" in result.detail
    assert bench.rig.labels() == {}
    reasons = bench.rig.rows("SELECT DISTINCT status, failure FROM samples")
    assert reasons == [("failed", "the answer is outside the label set")]
    bench.relabel.run()
    assert len(teacher.bills()) == 8


@pytest.mark.parametrize("missing", [{"terms": ""}, {"terms_allow_training": False}])
def test_without_terms_nothing_is_bought(
    missing: dict[str, Any], rig: Rig, teacher: Scripted
) -> None:
    fill(rig, 2)
    with open_bench(rig, base_url=teacher.url, **missing) as bench:
        result = bench.relabel.run()
    assert result.outcome == "nothing"
    assert "teacher.terms" in result.detail
    assert teacher.bills() == []


@pytest.mark.parametrize("missing", ["base_url", "model"])
def test_without_a_teacher_nothing_is_asked(missing: str, rig: Rig) -> None:
    fill(rig, 1)
    with open_bench(rig, **{missing: ""}) as bench:
        assert "no teacher is set" in bench.relabel.run().detail


def test_repeated_server_errors_open_the_breaker(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 60)
    teacher.behave(rate_500=1.0)
    bench.relabel.run()
    assert BREAKER_FAILURES <= len(bench.calls) <= BREAKER_FAILURES + 8
    why = bench.teacher.why_not()
    assert why is not None
    assert "failed repeatedly" in why


@pytest.mark.parametrize(
    "rig",
    [
        {"budget": {"label_calls": 7}},
        {"budget": {"label_tokens": 7 * 100}},
        {"budget": {"label_money": 0.3}},
    ],
    indirect=True,
    ids=["calls", "tokens", "money"],
)
def test_budget_is_a_hard_ceiling_under_concurrency(rig: Rig, teacher: Scripted) -> None:
    fill(rig, 60)
    teacher.behave(latency_ms=20)
    with open_bench(rig, base_url=teacher.url, max_concurrency=32) as bench:
        bench.relabel.run()
        bench.relabel.run()
        result = bench.relabel.run()
        assert "today's label budget" in result.detail
    budget, bills = rig.settings.budget, teacher.bills()
    tokens_in = sum(bill["prompt_tokens"] for bill in bills)
    tokens_out = sum(bill["completion_tokens"] for bill in bills)
    assert 0 < len(bills) <= budget.label_calls
    assert tokens_in + tokens_out <= budget.label_tokens
    assert (tokens_in * 1000 + tokens_out * 2000) / 1e6 <= budget.label_money
    assert len(rig.labels()) == len(bills) < 60


@pytest.mark.parametrize("rig", [{"budget": {"label_calls": 10}}], indirect=True)
def test_budget_holds_over_a_restart_and_for_unknown_calls(rig: Rig, teacher: Scripted) -> None:
    fill(rig, 20)
    teacher.behave(rate_500=1.0)
    with open_bench(rig, base_url=teacher.url, max_concurrency=2) as bench:
        bench.relabel.run()
        unknown = len(bench.held.list())
        assert unknown > 0
    teacher.behave(rate_500=0.0)
    with open_bench(rig, base_url=teacher.url) as bench:
        bench.relabel.recover()
        bench.relabel.run()
    assert len(teacher.bills()) == 6 - unknown, "what training data may spend of ten"


@pytest.mark.parametrize("rig", [{"budget": {"label_calls": 10}}], indirect=True)
def test_training_data_never_spends_what_evidence_needs(bench: Bench, teacher: Scripted) -> None:
    fill(bench.rig, 20)
    result = bench.relabel.run()
    assert (result.outcome, result.detail) == ("done", "6 labels")
    assert "14 samples wait" in bench.relabel.run().detail
    for number in range(5):
        bench.rig.sample(f"audit-{number}", TEXTS[30 + number], reason=SampleReason.AUDIT)
        bench.rig.sample(f"judge-{number}", TEXTS[40 + number], reason=SampleReason.HELD_OUT)
    assert bench.relabel.run().detail == "4 labels"
    labelled = {name.split("-")[0] for name in bench.rig.labels()}
    assert labelled == {"e", "audit", "judge"}
    assert len(teacher.bills()) == 10


@pytest.mark.parametrize("rig", [{"budget": {"label_calls": 10}}], indirect=True)
def test_labels_where_two_students_differ_are_paid_from_the_held_out_purse(
    bench: Bench, teacher: Scripted
) -> None:
    for number in range(3):
        bench.rig.sample(f"differ-{number}", TEXTS[number], reason=SampleReason.DISAGREEMENT)
        bench.rig.sample(f"kept-{number}", TEXTS[10 + number], reason=SampleReason.POOL)
    assert bench.relabel.run().detail == "2 labels", "a fifth of ten"
    assert set(bench.rig.labels()) == {"differ-0", "differ-1"}
    assert {status for name, status in bench.rig.statuses().items() if "kept" in name} == {"kept"}
    bench.rig.sample("e", TEXTS[20])
    assert bench.relabel.run().detail == "1 labels", "training data has its own"


class Odd(BaseHTTPRequestHandler):
    """Answers as it is told: (status, headers, body), one after the other, the last for ever."""

    script: ClassVar[list[tuple[int, dict[str, str], bytes]]]
    asked: ClassVar[list[str]]

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, body = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def completion(text: str, **about: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return json.dumps({"choices": [choice], **about}).encode()


@pytest.fixture
def odd() -> Iterator[tuple[type[Odd], str]]:
    """A handler to script, and the address of its server."""

    class Scriptable(Odd):
        script: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Scriptable)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Scriptable, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_heeded_in_seconds_and_as_a_date(
    kind: str, rig: Rig, odd: tuple[type[Odd], str]
) -> None:
    handler, url = odd
    rig.sample("e-0", TEXTS[0])
    later = datetime.now(UTC) + timedelta(seconds=2)
    value = "0.8" if kind == "seconds" else format_datetime(later, usegmt=True)
    handler.script = [
        (503, {**JSON, "retry-after": value}, b"{}"),
        (200, JSON, completion("refund")),
    ]
    started = datetime.now(UTC)
    with open_bench(rig, base_url=url) as bench:
        bench.relabel.run()
    assert rig.labels() == {"e-0": "refund"}
    assert len(handler.asked) == 2
    assert (datetime.now(UTC) - started).total_seconds() >= 0.8


def test_long_retry_after_stops_all_calls_until_then(rig: Rig, odd: tuple[type[Odd], str]) -> None:
    handler, url = odd
    fill(rig, 20)
    handler.script = [(429, {**JSON, "retry-after": "120"}, b"{}")]
    with open_bench(rig, base_url=url, max_concurrency=1) as bench:
        bench.relabel.run()
        assert len(handler.asked) == 1
        assert bench.teacher.why_not() is not None
    assert set(rig.statuses().values()) == {"pending"}


def test_redirect_is_not_followed(rig: Rig, odd: tuple[type[Odd], str]) -> None:
    handler, url = odd
    rig.sample("e-0", TEXTS[0])
    handler.script = [(307, {"location": f"{url}/elsewhere"}, b"")]
    with (
        open_bench(rig, base_url=url) as bench,
        pytest.raises(TeacherRefused, match=r"307: check .*teacher\.base_url"),
    ):
        bench.relabel.run()
    assert handler.asked == ["/v1/chat/completions"]
    assert rig.statuses() == {"e-0": "pending"}


@pytest.mark.parametrize(
    ("status", "body"),
    [(402, b"{}"), (429, b'{"error": {"code": "insufficient_quota", "message": "no"}}')],
)
def test_no_credit_is_said_and_not_retried(
    status: int, body: bytes, rig: Rig, odd: tuple[type[Odd], str]
) -> None:
    handler, url = odd
    rig.sample("e-0", TEXTS[0])
    handler.script = [(status, JSON, body)]
    with (
        open_bench(rig, base_url=url) as bench,
        pytest.raises(TeacherRefused, match="no credit left"),
    ):
        bench.relabel.run()
    assert len(handler.asked) == 1


def test_prompt_that_the_teacher_rejects_fails_alone(rig: Rig, odd: tuple[type[Odd], str]) -> None:
    handler, url = odd
    fill(rig, 3)
    handler.script = [(400, JSON, b"{}"), (200, JSON, completion("refund"))]
    with open_bench(rig, base_url=url, max_concurrency=1) as bench:
        bench.relabel.run()
    assert sorted(rig.statuses().values()) == ["failed", "labelled", "labelled"]


def test_teacher_that_rejects_every_prompt_does_not_fail_them_all(
    rig: Rig, odd: tuple[type[Odd], str]
) -> None:
    """A setting that the server does not know, for example, is not the prompts' fault."""
    handler, url = odd
    fill(rig, 60)
    handler.script = [(400, JSON, b"{}")]
    with (
        open_bench(rig, base_url=url) as bench,
        pytest.raises(TeacherRefused, match="prompts in a row: check teacher"),
    ):
        bench.relabel.run()
    statuses = list(rig.statuses().values())
    under_way = rig.settings.teacher.max_concurrency
    assert statuses.count("failed") < BREAKER_FAILURES + under_way
    assert statuses.count("pending") == 60 - statuses.count("failed")


def test_what_was_received_before_a_refusal_is_applied(
    rig: Rig, odd: tuple[type[Odd], str]
) -> None:
    handler, url = odd
    fill(rig, 5)
    handler.script = [(200, JSON, completion("refund")), (401, JSON, b"{}")]
    with open_bench(rig, base_url=url, max_concurrency=1) as bench, pytest.raises(TeacherRefused):
        bench.relabel.run()
    assert rig.labels() == {"e-0": "refund"}


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"usage": None},
        {"usage": {"prompt_tokens": -5, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": None, "completion_tokens": "many"}},
        {"id": 7, "created": "now", "object": "thing", "service_tier": 9},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    ],
)
def test_reply_of_a_merely_compatible_server_is_read(
    about: dict[str, Any], rig: Rig, odd: tuple[type[Odd], str]
) -> None:
    handler, url = odd
    rig.sample("e-0", TEXTS[0])
    handler.script = [(200, JSON, completion("refund", **about))]
    with open_bench(rig, base_url=url) as bench:
        bench.relabel.run()
        spent = bench.ledger.spent_on(rig.now())
        if (about.get("usage") or {}).get("prompt_tokens") == 3:
            assert spent.tokens == 4
        else:
            question = ask("e-0", (Message("user", TEXTS[0]),), rig.task, bench.teacher.policy)
            assert spent.tokens == question.tokens, "as reserved where no usage is told"
    assert rig.labels() == {"e-0": "refund"}


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome to the hotel's network</html>",
        b'{"ok": true}',
        b'{"choices": "none"}',
    ],
)
def test_page_that_is_no_completion_is_held_and_not_asked_again(
    body: bytes, rig: Rig, odd: tuple[type[Odd], str]
) -> None:
    handler, url = odd
    rig.sample("e-0", TEXTS[0])
    handler.script = [(200, {"content-type": "text/html"}, body)]
    with open_bench(rig, base_url=url) as bench:
        bench.relabel.run()
        bench.relabel.run()
        assert len(bench.held.list()) == 1
    assert len(handler.asked) == 1
    assert rig.statuses() == {"e-0": "held"}
