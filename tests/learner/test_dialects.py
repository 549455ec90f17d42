"""Teachers with a will of their own: parameters they refuse, and answers of no use."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from learner_rig import Rig, open_bench, open_rig
from pydantic import SecretStr

from pipelines.ask import Question
from pipelines.errors import TeacherRefused
from pipelines.types import Message
from service.learner.teacher import Reply
from service.learner.unusable import MANY, PROBE, RESTS

Answer = tuple[int, dict[str, Any]]
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECRET = "my card 4929 was stolen in the night train"


def completed(content: Any, finish: str = "stop", **message: Any) -> Answer:
    choice = {"index": 0, "finish_reason": finish, "message": {"content": content, **message}}
    used = {"prompt_tokens": 9, "completion_tokens": 1}
    return 200, {"choices": [choice], "usage": used}


def refused(message: str, param: str | None = None, code: str | None = None) -> Answer:
    return 400, {"error": {"message": message, "param": param, "code": code, "type": "invalid"}}


class Strict:
    """A server whose `answer` sees the request and says what becomes of it."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda request: completed("refund")
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        strict = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                strict.headers.append({name.lower(): said for name, said in self.headers.items()})
                strict.paths.append(self.path)
                strict.asked.append(request)
                status, content = strict.answer(request)
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def strict() -> Iterator[Strict]:
    teacher = Strict()
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


def fill(rig: Rig, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        rig.sample(f"e-{number}", f"{SECRET}, case {number}")


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("temperature", refused("Unsupported value: 'temperature' does not support 0.",
                                "temperature", "unsupported_value")),
        ("temperature", refused("temperature is not supported by this model")),
        ("max_completion_tokens", (422, {"detail": [{"type": "extra_forbidden",
                                                     "loc": ["body", "max_completion_tokens"]}]})),
        ("max_completion_tokens", refused("Unsupported parameter: 'max_completion_tokens'. Use "
                                          "'max_tokens' instead.", code="unsupported_parameter")),
    ],
)  # fmt: skip
def test_a_parameter_of_ours_that_is_refused_by_name_is_not_sent_again(
    name: str, refusal: Answer, rig: Rig, strict: Strict
) -> None:
    fill(rig, 12)
    strict.answer = lambda request: refusal if name in request else completed("refund")
    with open_bench(rig, base_url=strict.url) as bench, structlog.testing.capture_logs() as log:
        for _ in range(3):
            bench.relabel.run()
        assert len(rig.labels()) == 12
        said = [line["event"] for line in log if "parameter" in line["event"]]
        assert len(said) == 1, "one line"
        before = len(strict.asked)
        fill(rig, 5, start=12)
        bench.relabel.run()
        assert len(strict.asked) == before + 5, "and from then on nothing is refused"
        key = rig.scalar("SELECT ledger_key FROM labels WHERE event_id = 'e-14'")
        sent = json.loads(bench.ledger.request(key) or b"{}")
    assert name not in sent, "the ledger has what was sent"
    assert "max_tokens" in sent or "max_completion_tokens" in sent, "an answer always has a limit"


def test_labels_are_asked_as_the_app_asks(rig: Rig, strict: Strict) -> None:
    """What decides about the answer goes along, the app's word before ours; nothing else does."""
    call = {"id": "c1", "type": "function", "function": {"name": "who", "arguments": "{}"}}
    talk = (
        Message("user", "hi"),
        Message("assistant", "", [call]),
        Message("tool", "customer 7", tool_call_id="c1"),
        Message("user", "where is my parcel"),
    )
    wanted = {"type": "json_object"}
    rig.sample("e-0", messages=talk, asked={"response_format": wanted, "seed": 7, "max_tokens": 5})
    rig.sample("e-1", "plain")
    rig.sample("e-2", "hot", asked={"temperature": 1.0, "max_tokens": 10**6})
    with open_bench(rig, base_url=strict.url, max_concurrency=1) as bench:
        bench.relabel.run()
        asked = {request["messages"][-1]["content"]: request for request in strict.asked}
        assert len(rig.labels()) == 3
    ours = bench.teacher.policy
    first = asked["where is my parcel"]
    assert first["messages"][-3:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "customer 7", "tool_call_id": "c1"},
        {"role": "user", "content": "where is my parcel"},
    ]
    assert (first["response_format"], first["seed"]) == (wanted, 7)
    assert (first[ours.max_tokens_field], first["temperature"]) == (5, ours.temperature)
    assert set(asked["plain"]) == {"model", "messages", "temperature", ours.max_tokens_field}
    hot = asked["hot"]
    assert (hot["temperature"], hot[ours.max_tokens_field]) == (1.0, ours.max_tokens)


def as_strict_as_the_real_ones(request: dict[str, Any]) -> Answer:
    """Refuses what it does not know and turns that do not fit, reasons first, cuts at the limit."""
    known = {"model", "messages", "max_completion_tokens", "response_format", "tools", "seed",
             "tool_choice", "temperature", "reasoning_effort"}  # fmt: skip
    if unknown := sorted({*request} - known):
        return refused(f"Unrecognized request argument: {unknown[0]}", unknown[0])
    if request.get("temperature", 1) != 1:
        return refused("Unsupported value: 'temperature' does not support 0.", "temperature")
    called: set[str] = set()
    for message in request["messages"]:
        if message["role"] == "assistant" and message.get("content") is None:
            called |= {call["id"] for call in message["tool_calls"]}
        if message["role"] == "tool" and message.get("tool_call_id") not in called:
            return refused("messages with role 'tool' must follow their 'tool_calls'", "messages")
    if request["max_completion_tokens"] < 3:
        return completed("<think>Is it a", "length")
    thought = "<think>\nIs it delivery?\n</think>\n\n"
    if request.get("response_format", {}).get("type") == "json_schema":
        return completed(thought + '{"intent": "refund"}')
    return completed(thought + "This message is about a refund.")


def test_a_strict_teacher_gives_labels_for_all_that_is_asked_as_the_app_asks(
    rig: Rig, strict: Strict
) -> None:
    """Only the app's format makes the answer a label; tool turns have their ids."""
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "who", "arguments": "{}"}}
    turns = (Message("assistant", "", [call]), Message("tool", "customer 7", tool_call_id="c1"))
    for number in range(12):
        text = Message("user", f"case {number}")
        messages = (text,) if number % 2 else (text, *turns, Message("user", f"now {number}"))
        rig.sample(f"e-{number}", messages=messages, asked={"response_format": wanted})
    rig.sample("cut", "cut", asked={"response_format": wanted, "max_tokens": 2})
    rig.sample("bare", "bare")
    strict.answer = as_strict_as_the_real_ones
    rig.task = replace(rig.task, answer_pointer="/intent")
    with open_bench(rig, base_url=strict.url) as bench:
        for _ in range(3):
            bench.relabel.run()
    assert set(rig.labels()) == {f"e-{number}" for number in range(12)}
    assert {rig.statuses()[name] for name in ("cut", "bare")} == {"failed"}


def test_a_parameter_of_the_apps_is_never_left_out(rig: Rig, strict: Strict) -> None:
    refusal = refused("no temperature here", "temperature")
    strict.answer = lambda request: refusal if "temperature" in request else completed("refund")
    fill(rig, 3)
    with open_bench(rig, base_url=strict.url) as bench:
        for _ in range(3):
            bench.relabel.run()
        for number in range(3):
            rig.sample(f"own-{number}", f"own {number}", asked={"temperature": 0.7})
        bench.relabel.run()
    assert set(rig.labels()) == {"e-0", "e-1", "e-2"}
    assert {rig.statuses()[f"own-{number}"] for number in range(3)} == {"failed"}
    assert all(
        "temperature" in request
        for request in strict.asked
        if request["messages"][-1]["content"].startswith("own")
    )


def test_headers_and_a_query_of_our_own_go_with_every_call(rig: Rig, strict: Strict) -> None:
    fill(rig, 1)
    own = {"Api-Key": SecretStr("s3cret"), "x-subscription": SecretStr("7")}
    with open_bench(rig, base_url=strict.url, headers=own, query={"api-version": "v 1"}) as bench:
        bench.relabel.run()
    (headers,), (path,) = strict.headers, strict.paths
    assert (headers["api-key"], headers["x-subscription"]) == ("s3cret", "7")
    assert "authorization" not in headers, "without a key there is none to send"
    assert path == "/v1/chat/completions?api-version=v+1"


def test_one_prompt_alone_proves_nothing_about_a_parameter(rig: Rig, strict: Strict) -> None:
    fill(rig, 1)
    strict.answer = lambda request: refused("no temperature here", "temperature")
    with open_bench(rig, base_url=strict.url) as bench:
        bench.relabel.run()
    assert rig.statuses() == {"e-0": "pending"}, "it was free, and may be asked again"
    assert all("temperature" in request for request in strict.asked)


def test_what_the_teacher_says_is_told_without_a_word_of_the_prompt(
    rig: Rig, strict: Strict
) -> None:
    fill(rig, 20)
    strict.answer = lambda request: refused(
        "The model `large` needs a system message.", "messages", "bad"
    )
    with open_bench(rig, base_url=strict.url) as bench:
        with pytest.raises(
            TeacherRefused, match="bad, parameter messages, The model `large` needs"
        ):
            bench.relabel.run()
        assert bench.board.teacher_said.startswith("the teacher said 400 to this prompt: bad")
        strict.answer = lambda request: refused(f"Flagged: {SECRET}", code="flagged")
    rig.now = lambda: datetime.now(UTC) + timedelta(minutes=10)
    with open_bench(rig, base_url=strict.url, max_concurrency=1) as bench:
        with pytest.raises(TeacherRefused, match="flagged") as caught:
            bench.relabel.run()
        assert "card" not in str(caught.value) + bench.board.teacher_said


def test_an_answer_that_is_cut_is_no_label_even_where_it_looks_like_one(
    rig: Rig, strict: Strict
) -> None:
    fill(rig, 3)
    strict.answer = lambda request: completed("refund", "length")
    with open_bench(rig, base_url=strict.url) as bench:
        assert "3 answers that are no label" in bench.relabel.run().detail
        assert "token limit (teacher.max_tokens)" in bench.board.unusable["support"].last
    assert rig.labels() == {}


@pytest.mark.parametrize(
    "answer",
    [completed("<think>\nIs it delivery?\n</think>\n\n**refund**"),
     completed("refund", "eos_token"),
     completed([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "refund"}]),
     completed("refund", reasoning_content="delivery, perhaps")],
)  # fmt: skip
def test_a_teacher_that_reasons_is_understood(answer: Answer, rig: Rig, strict: Strict) -> None:
    fill(rig, 3)
    strict.answer = lambda request: answer
    with open_bench(rig, base_url=strict.url) as bench:
        bench.relabel.run()
    assert set(rig.labels().values()) == {"refund"}


def test_a_task_that_has_no_prompts_slows_down_no_other(
    rig: Rig, strict: Strict, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(rig, 80)
    batches: list[int] = []
    with open_bench(rig, base_url=strict.url) as bench:
        answer = bench.teacher.answer

        def counted(questions: Sequence[Question]) -> list[Reply]:
            batches.append(len(questions))
            return answer(questions)

        tasks = {rig.task.name: rig.task, "idle": replace(rig.task, name="idle")}
        monkeypatch.setattr(bench.relabel, "_tasks", tasks)
        monkeypatch.setattr(bench.teacher, "answer", counted)
        bench.relabel.run()
    assert batches == [PROBE, 64, 8], "few only until the first answer was of use"


def test_answers_of_no_use_are_told_and_then_not_bought_any_more(rig: Rig, strict: Strict) -> None:
    at = [NOON]
    rig.now = lambda: at[0]
    fill(rig, 200)
    strict.answer = lambda request: completed(f"This is about {SECRET}.")
    with open_bench(rig, base_url=strict.url) as bench:
        bench.relabel.run()
        asked = len(strict.asked)
        assert MANY <= asked < MANY + PROBE, "not the whole day's budget"
        found = bench.board.unusable["support"]
        assert (found.in_a_row, found.last) == (asked, "57 characters of text")
        result = bench.relabel.run()
        assert len(strict.asked) == asked
        assert result.detail == (
            "nothing is bought for support: again and again the teacher's answers were no label"
        )
        at[0] += RESTS
        bench.relabel.run()
        assert len(strict.asked) == asked + PROBE, "after a rest a few are tried"
        at[0] += RESTS
        strict.answer = lambda request: completed("refund")
        bench.relabel.run()
        assert bench.board.unusable == {}
        assert rig.statuses()["e-199"] == "labelled"
