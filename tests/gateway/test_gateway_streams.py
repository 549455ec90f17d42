"""Teachers' streams through a real gateway: whoever leaves first, nothing is lost or made up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from gateway_rig import RunningGateway, Teacher, serving, settings_for, wait_until

from pipelines.types import PromptEvent
from service.gateway.wire import StreamReader

ASKED: Any = [{"role": "user", "content": "where is my parcel"}]


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    teacher = Teacher(answer="delivery")
    with serving(teacher.app()) as port:
        teacher.port = port
        yield teacher


@pytest.fixture
def gateway(tmp_path: Path, teacher: Teacher) -> Iterator[RunningGateway]:
    running = RunningGateway(settings_for(tmp_path, teacher))
    yield running
    running.stop()


def client(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="app-key", max_retries=0)


def leave_after(gateway: RunningGateway, seen: bytes, model: str = "desk") -> None:
    """Read a stream up to some bytes, and close the connection."""
    body = {"model": model, "messages": ASKED, "stream": True}
    url, read = f"{gateway.url}/v1/chat/completions", b""
    with httpx2.stream("POST", url, json=body, timeout=30) as response:
        for part in response.iter_bytes():
            read += part
            if seen in read:
                return
    raise AssertionError(f"{seen!r} did not come")


def counted(gateway: RunningGateway, task: str = "support") -> dict[str, float]:
    """Requests by outcome."""
    kinds = (("teacher", "passed_through"), ("nobody", "failed"))
    return {
        outcome: gateway.metric("requests_total", task=task, served_by=by, outcome=outcome)
        for by, outcome in kinds
    }


def only_event(gateway: RunningGateway) -> PromptEvent:
    wait_until(lambda: len(gateway.events()) == 1)
    (event,) = gateway.events()
    return event


def test_streams_of_a_teacher_that_lingers_after_the_announced_end_are_whole(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    """The official client stops reading at [DONE] and closes the connection."""
    teacher.lingers = 0.5

    def ask(_: int) -> str:
        stream = app.chat.completions.create(model="desk", messages=ASKED, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with client(gateway) as app, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(40))) == {"delivery"}
    wait_until(lambda: sum(counted(gateway).values()) == 40)
    assert counted(gateway) == {"passed_through": 40, "failed": 0}
    wait_until(lambda: len(gateway.events()) == 40)
    for event in gateway.events():
        assert event.served_by == "teacher"
        assert event.answer == event.teacher_answer == "delivery"
        assert event.teacher_model == "big-teacher"


def test_a_stream_that_the_app_leaves_in_the_middle_is_a_prompt_without_an_answer(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    # What has come of "delivery late" so far is a label, and not what the teacher says.
    teacher.answer, teacher.piece_seconds = "delivery late", 0.1
    leave_after(gateway, b'"content": "y"')
    event = only_event(gateway)
    assert [message.content for message in event.messages] == ["where is my parcel"]
    assert event.answer is None
    assert event.teacher_answer is None
    assert event.served_by == "teacher"
    assert event.teacher_model == "big-teacher"
    # Nobody has failed.
    assert counted(gateway) == {"passed_through": 1, "failed": 0}
    wait_until(lambda: teacher.streaming == 0, seconds=1.0)  # it is not paid for to the end


def test_a_stream_that_the_app_has_left_before_it_began_is_a_prompt_and_is_closed(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    teacher.latency, teacher.piece_seconds = 0.5, 5.0
    body = {"model": "desk", "messages": ASKED, "stream": True}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=0.2)
    event = only_event(gateway)
    assert event.answer is event.teacher_answer is None
    assert counted(gateway) == {"passed_through": 1, "failed": 0}
    wait_until(lambda: teacher.streaming == 0, seconds=3.0)


def test_a_stream_that_breaks_at_the_teacher_is_an_error_a_failure_and_no_event(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    """As every other failure of the teacher: the app knows, and asks again."""
    teacher.cut_after = 3
    with client(gateway) as app, pytest.raises(openai.APIError, match="broke off"):
        list(app.chat.completions.create(model="desk", messages=ASKED, stream=True))
    wait_until(lambda: counted(gateway) == {"passed_through": 0, "failed": 1})
    teacher.cut_after = None
    gateway.chat()
    assert only_event(gateway).answer == "delivery"


@pytest.mark.parametrize("after", ["the finish reason", "[DONE]"])
def test_a_stream_that_breaks_after_its_announced_end_is_whole(
    gateway: RunningGateway, teacher: Teacher, after: str
) -> None:
    teacher.cut_after = len("delivery") + (1 if after == "the finish reason" else 2)
    body = {"model": "desk", "messages": ASKED, "stream": True}
    answer = gateway.http.post("/v1/chat/completions", json=body)  # reads to the end
    assert b'"error"' not in answer.content
    assert only_event(gateway).teacher_answer == "delivery"
    assert counted(gateway) == {"passed_through": 1, "failed": 0}


@pytest.mark.parametrize("ending", [b"", b"data: [DONE]", b"data:[DONE]\r\n\r\n"])
def test_a_stream_may_end_without_done_or_in_another_spelling(
    gateway: RunningGateway, teacher: Teacher, ending: bytes
) -> None:
    teacher.ending = ending
    with client(gateway) as app:
        list(app.chat.completions.create(model="desk", messages=ASKED, stream=True))
    assert only_event(gateway).teacher_answer == "delivery"
    assert counted(gateway) == {"passed_through": 1, "failed": 0}


def test_an_app_may_leave_at_the_finish_reason(gateway: RunningGateway, teacher: Teacher) -> None:
    teacher.ending, teacher.lingers = b"", 5.0
    leave_after(gateway, b'"finish_reason": "stop"')
    assert only_event(gateway).teacher_answer == "delivery"
    assert counted(gateway) == {"passed_through": 1, "failed": 0}


def test_streams_of_unclaimed_models_are_counted_by_their_end_too(
    gateway: RunningGateway, teacher: Teacher
) -> None:
    teacher.lingers = 0.5
    with client(gateway) as app:
        list(app.chat.completions.create(model="other", messages=ASKED, stream=True))
    wait_until(
        lambda: counted(gateway, "unclaimed") == {"passed_through": 1, "failed": 0}, seconds=5.0
    )
    assert gateway.events() == []


STREAM = (
    b'data: {"id":"c","model":"m","choices":[{"delta":{"content":"re"}}]}\n\n'
    b'data: {"id":"c","model":"m","choices":[{"delta":{"content":"fund"}}]}\n\n'
)
FINISH = b'data: {"id":"c","model":"m","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("end", [DONE, FINISH, FINISH + DONE])
def test_an_end_is_heard_wherever_the_bytes_are_cut(end: bytes) -> None:
    whole = STREAM + end
    for cut in range(len(whole)):
        reader = StreamReader()
        reader.feed(whole[:cut])
        reader.feed(whole[cut:])
        assert reader.ended
        assert reader.completion().content == "refund"


def test_without_an_end_there_is_no_answer_and_a_stream_that_stops_has_ended() -> None:
    reader = StreamReader()
    reader.feed(STREAM)
    assert not reader.ended
    assert reader.completion().content is None
    assert reader.completion().model == "m"
    reader.close()
    assert reader.completion().content == "refund"
    assert reader.completion().whole is None  # whole as far as anybody knows, but no label
