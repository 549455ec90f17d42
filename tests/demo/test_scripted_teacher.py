"""The scripted teacher, in its own process, asked by the unmodified openai client."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
from openai import AsyncOpenAI

from pipelines.errors import ExitCode
from service.demo.answers import REFUSAL
from service.demo.corpus import load_corpus
from service.demo.traffic import DemoMessage, Traffic

T = TypeVar("T")
COMMAND = [sys.executable, "-m", "service.demo.scripted_teacher"]
LABELS = load_corpus().labels
STREAM = Traffic(11)
ITEMS = [STREAM.message(index, new_intent_share=0.15) for index in range(300)]


@contextmanager
def scripted(*arguments: str) -> Iterator[str]:
    """The base address of a running teacher; it ends when its standard input closes."""
    process = subprocess.Popen(
        [*COMMAND, "--until-stdin-closes", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        process.stdin.close()
        assert process.wait(timeout=60) == ExitCode.OK
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    """Shared by the tests that change nothing."""
    with scripted() as address:
        yield address


def ask(
    address: str,
    job: Callable[[AsyncOpenAI], Coroutine[Any, Any, T]],
    *,
    key: str = "any",
    timeout: float = 60.0,
) -> T:
    async def session() -> T:
        async with AsyncOpenAI(
            base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=timeout
        ) as client:
            return await job(client)

    return asyncio.run(session())


async def answer(client: AsyncOpenAI, text: str) -> str | None:
    reply = await client.chat.completions.create(
        model="support-desk",
        messages=[
            {"role": "system", "content": "Sort this."},
            {"role": "user", "content": text},
        ],
    )
    return reply.choices[0].message.content


def answers(address: str, items: list[DemoMessage]) -> list[str | None]:
    async def job(client: AsyncOpenAI) -> list[str | None]:
        return await asyncio.gather(*(answer(client, item.text) for item in items))

    return ask(address, job)


def control(address: str, **changes: object) -> dict[str, Any]:
    request = urllib.request.Request(f"{address}/control", data=json.dumps(changes).encode())
    with urllib.request.urlopen(request, timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def test_answers_the_true_label_and_says_that_it_is_scripted(teacher: str) -> None:
    async def job(client: AsyncOpenAI) -> Any:
        return await client.chat.completions.with_raw_response.create(
            model="support-desk",
            messages=[
                {"role": "user", "content": ITEMS[1].text},
                {"role": "assistant", "content": ITEMS[1].intent},
                {"role": "user", "content": [{"type": "text", "text": ITEMS[0].text}]},
            ],
        )

    raw = ask(teacher, job)
    reply = raw.parse()
    assert raw.headers["x-scripted-teacher"] == "1"
    assert reply.choices[0].message.content == ITEMS[0].intent
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.model, reply.system_fingerprint) == ("support-desk", "scripted")
    assert reply.usage.prompt_tokens > len(ITEMS[0].text.split())
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_knows_every_message_of_the_traffic(teacher: str) -> None:
    assert answers(teacher, ITEMS) == [item.intent for item in ITEMS]


def test_unknown_text_gets_a_sentence_that_is_no_label(teacher: str) -> None:
    assert ask(teacher, lambda client: answer(client, "What is the time in Lima?")) == REFUSAL
    assert REFUSAL not in LABELS


def test_streams_the_same_answer_with_usage_at_the_end(teacher: str) -> None:
    async def job(client: AsyncOpenAI) -> list[Any]:
        stream = await client.chat.completions.create(
            model="support-desk",
            messages=[{"role": "user", "content": ITEMS[0].text}],
            stream=True,
            stream_options={"include_usage": True},
        )
        return [chunk async for chunk in stream]

    *chunks, last = ask(teacher, job)
    assert last.choices == []
    assert last.usage.completion_tokens > 0
    assert {chunk.system_fingerprint for chunk in chunks} == {"scripted"}
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == ITEMS[0].intent
    assert sum(piece != "" for piece in pieces) > 1
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stream_ends_with_done_and_has_no_usage_unless_asked(teacher: str) -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    request = urllib.request.Request(
        f"{teacher}/v1/chat/completions", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = reply.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in event for event in events)


def test_malformed_request_is_refused_in_the_openai_shape(teacher: str) -> None:
    async def job(client: AsyncOpenAI) -> None:
        await client.chat.completions.create(model="m", messages=[])

    with pytest.raises(openai.BadRequestError) as caught:
        ask(teacher, job)
    assert caught.value.type == "invalid_request_error"
    assert "messages" in caught.value.message


def test_lists_its_model_and_prices() -> None:
    async def job(client: AsyncOpenAI) -> list[Any]:
        return [model async for model in client.models.list()]

    with scripted("--model", "big-one", "--price-per-million-in", "2.5") as address:
        (model,) = ask(address, job)
    assert (model.id, model.owned_by) == ("big-one", "scripted")
    assert model.metadata == {"price_per_million_in": 2.5}


def test_wrong_key_is_refused_and_the_right_one_accepted() -> None:
    def job(client: AsyncOpenAI) -> Coroutine[Any, Any, str | None]:
        return answer(client, ITEMS[0].text)

    with scripted("--api-key", "sesame") as address:
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(address, job, key="wrong")
        assert caught.value.code == "invalid_api_key"
        assert ask(address, job, key="sesame") == ITEMS[0].intent
        assert "api_key" not in control(address, error_rate=0)


def test_faults_are_switched_while_it_runs_and_only_answers_are_charged(tmp_path: Path) -> None:
    log = tmp_path / "billing.jsonl"

    def job(client: AsyncOpenAI) -> Coroutine[Any, Any, str | None]:
        return answer(client, ITEMS[0].text)

    with scripted("--billing-log", str(log), "--rate-429", "1", "--retry-after-s", "7") as address:
        with pytest.raises(openai.RateLimitError) as limited:
            ask(address, job)
        assert limited.value.response.headers["retry-after"] == "7"
        assert limited.value.code == "rate_limit_exceeded"

        assert control(address, rate_429=0, rate_500=1)["rate_500"] == 1
        with pytest.raises(openai.InternalServerError):
            ask(address, job)
        assert log.read_text() == ""

        control(address, rate_500=0)
        assert ask(address, job) == ITEMS[0].intent
        with pytest.raises(urllib.error.HTTPError, match="400"):
            control(address, rate_of_429=1)
    (line,) = [json.loads(row) for row in log.read_text().splitlines()]
    messages = [["system", "Sort this."], ["user", ITEMS[0].text]]
    expected = sha256(json.dumps(messages, ensure_ascii=False).encode()).hexdigest()
    assert line["messages_sha256"] == expected
    assert (line["model"], line["status"]) == ("support-desk", "answered")
    assert line["prompt_tokens"] > line["completion_tokens"] > 0


def test_a_seed_that_is_named_again_brings_the_same_faults_again() -> None:
    def job(client: AsyncOpenAI) -> Coroutine[Any, Any, str | None]:
        return answer(client, ITEMS[0].text)

    def outcomes(address: str) -> list[bool]:
        control(address, rate_429=0.5, seed=3)
        found = []
        for _ in range(16):
            try:
                found.append(ask(address, job) is None)
            except openai.RateLimitError:
                found.append(True)
        return found

    with scripted() as address:
        first = outcomes(address)
        assert 0 < sum(first) < 16
        assert outcomes(address) == first


def test_each_charged_request_has_its_own_line(tmp_path: Path) -> None:
    log = tmp_path / "billing.jsonl"
    with scripted("--billing-log", str(log), "--latency-ms", "5") as address:
        answers(address, ITEMS[:40])
    lines = [json.loads(row) for row in log.read_text().splitlines()]
    assert len(lines) == len({line["id"] for line in lines}) == 40


def test_hanging_request_is_charged_and_never_answered(tmp_path: Path) -> None:
    log = tmp_path / "billing.jsonl"
    with scripted("--billing-log", str(log), "--hang-rate", "1") as address:
        with pytest.raises(openai.APITimeoutError):
            ask(address, lambda client: answer(client, ITEMS[0].text), timeout=3)
        (line,) = [json.loads(row) for row in log.read_text().splitlines()]
    assert line["status"] == "unanswered"


def test_errors_are_valid_labels_and_the_same_each_time() -> None:
    with scripted("--error-rate", "0.3", "--nonsense-rate", "0.1") as address:
        first, again = answers(address, ITEMS), answers(address, ITEMS)
    assert first == again
    nonsense = [given for given in first if given not in LABELS]
    wrong = [
        given
        for given, item in zip(first, ITEMS, strict=True)
        if given in LABELS and given != item.intent
    ]
    assert 15 <= len(nonsense) <= 48
    assert 55 <= len(wrong) <= 115


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_replays_recorded_answers_by_exact_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".csv":
        path.write_text('text,gold\n"My card, where is it?",card_arrival\nrate?,exchange_rate\n')
    else:
        rows = [("My card, where is it?", "card_arrival"), ("rate?", "exchange_rate")]
        path.write_text("".join(json.dumps({"text": a, "gold": b}) + "\n" for a, b in rows))

    async def job(client: AsyncOpenAI) -> list[str | None]:
        texts = ("My card, where is it?", "rate?", "my card, where is it?", ITEMS[0].text)
        return [await answer(client, text) for text in texts]

    with scripted("--answers", str(path), "--label-column", "gold") as address:
        assert ask(address, job) == ["card_arrival", "exchange_rate", REFUSAL, REFUSAL]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("text,label\na,x\na,y\n", "two different labels"),
        ("text,gold\na,x\n", "needs the text columns"),
        ("text,label\n", "has no answers"),
    ],
)
def test_bad_answers_file_is_named_and_refused(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(content)
    done = subprocess.run(
        [*COMMAND, "--answers", str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == ExitCode.SETTINGS
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_port_is_said_plainly(teacher: str) -> None:
    port = teacher.rpartition(":")[2]
    done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=120)
    assert done.returncode == ExitCode.PORT_IN_USE
    assert port in done.stderr
