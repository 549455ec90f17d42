"""Every way out of a chat request: what is counted, told, sent and recorded, from one table."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gateway_rig import (
    TASK,
    LearnerSide,
    RunningGateway,
    Teacher,
    serving,
    settings_for,
    shared_students,
    wait_until,
)

from pipelines.types import PromptEvent
from service.keys import open_keys
from service.sections import BudgetSettings

PARCEL = "where is my parcel"  # the student says delivery, the teacher refund
# More tokens than the installed encoder has positions for.
ENDLESS = "parcel " * 1500
TOO_FAR = {"max_tokens": 4000}  # what a head says that lets the encoder read it
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is on the topic."""

    by: str
    answer: str | None = None
    teacher_answer: str | None = None
    student: bool = True
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a request comes to an end, and what that must look like from everywhere."""

    # The world it meets.
    threshold: float | None = 0.0
    student: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0  # that may be escalated
    task: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] | None = field(default_factory=dict)  # None: there is none
    upstream: Mapping[str, Any] = field(default_factory=dict)
    text: str = PARCEL
    asks: Mapping[str, Any] = field(default_factory=dict)
    # What the app is told.
    status: int = 200
    by: str
    version: str = "teacher"
    confidence: bool = False
    unsure: str | None = None
    retry: bool = True
    says: str  # the answer's text, or the error's code
    # What is counted.
    counted: tuple[str, str, str]
    record: Record | None = None


NO_LEASE = {"unsure": "no_threshold", "escalation": "no_lease"}
WAYS = {
    "student": Way(
        by="student",
        version="student",
        confidence=True,
        says="delivery",
        counted=(TASK, "student", "answered"),
        record=Record(by="student", answer="delivery"),
    ),
    "student marked unsure": Way(
        threshold=None,
        by="student",
        version="student",
        confidence=True,
        unsure="no_lease",
        says="delivery",
        counted=(TASK, "student", "unsure"),
        record=Record(by="student", answer="delivery", attributes=NO_LEASE),
    ),
    "student covers a failing teacher": Way(
        threshold=None,
        calls=2,
        teacher={"status": 500},
        by="student",
        version="student",
        confidence=True,
        unsure="teacher_failed",
        says="delivery",
        counted=(TASK, "student", "unsure"),
        record=Record(
            by="student",
            answer="delivery",
            attributes={"unsure": "no_threshold", "escalation": "teacher_failed"},
        ),
    ),
    "escalated": Way(
        threshold=None,
        calls=2,
        by="teacher",
        confidence=True,
        says="refund",
        counted=(TASK, "teacher", "escalated"),
        record=Record(
            by="teacher",
            answer="refund",
            teacher_answer="refund",
            attributes={"unsure": "no_threshold", "escalation": "answered"},
        ),
    ),
    "refused": Way(
        threshold=None,
        task={"when_unsure": "refuse"},
        status=503,
        by="nobody",
        version="student",
        confidence=True,
        unsure="no_lease",
        retry=False,
        says="unsure_no_lease",
        counted=(TASK, "nobody", "refused"),
        record=Record(by="app", attributes=NO_LEASE),
    ),
    "student failed": Way(
        about=TOO_FAR,
        text=ENDLESS,
        status=503,
        by="nobody",
        version="student",
        says="student_failed",
        counted=(TASK, "nobody", "failed"),
        record=Record(
            by="app",
            student=False,
            attributes={"unsure": "student_failed", "escalation": "no_lease"},
        ),
    ),
    "student failed, escalated": Way(
        about=TOO_FAR,
        calls=2,
        text=ENDLESS,
        by="teacher",
        says="refund",
        counted=(TASK, "teacher", "escalated"),
        record=Record(
            by="teacher",
            answer="refund",
            teacher_answer="refund",
            student=False,
            attributes={"unsure": "student_failed", "escalation": "answered"},
        ),
    ),
    "passed through": Way(
        student=False,
        by="teacher",
        says="refund",
        counted=(TASK, "teacher", "passed_through"),
        record=Record(by="teacher", answer="refund", teacher_answer="refund", student=False),
    ),
    "passed through and cut": Way(
        student=False,
        teacher={"finish_reason": "length"},
        by="teacher",
        says="refund",
        counted=(TASK, "teacher", "passed_through"),
        record=Record(by="teacher", answer="refund", student=False),
    ),
    "beyond a student": Way(
        asks={"tools": TOOLS},
        by="teacher",
        says="refund",
        counted=(TASK, "teacher", "passed_through"),
        record=Record(by="teacher", answer="refund", teacher_answer="refund", student=False),
    ),
    "unclaimed": Way(
        asks={"model": "other"},
        by="teacher",
        says="refund",
        counted=("unclaimed", "teacher", "passed_through"),
    ),
    "the teacher refuses": Way(
        student=False,
        teacher={"status": 429},
        status=429,
        by="teacher",
        says="c",
        counted=(TASK, "nobody", "failed"),
    ),
    "the teacher is away": Way(
        student=False,
        upstream={"base_url": "http://127.0.0.1:9/v1"},
        status=502,
        by="nobody",
        says="teacher_connect",
        counted=(TASK, "nobody", "failed"),
    ),
    "no teacher": Way(
        student=False,
        teacher=None,
        status=503,
        by="nobody",
        says="no_teacher",
        counted=(TASK, "nobody", "failed"),
    ),
}


@contextmanager
def world(folder: Path, way: Way) -> Iterator[tuple[RunningGateway, str]]:
    """A gateway as the way wants it, and the name of its student."""
    budget = BudgetSettings(
        escalation_calls=way.calls, escalation_money=9.0, lease_calls=way.calls or 1
    )
    with ExitStack() as stack:
        learner = LearnerSide(folder, open_keys(folder), budget)
        stack.enter_context(learner.running())
        teacher = None
        if way.teacher is not None:
            teacher = Teacher(**way.teacher)
            teacher.port = stack.enter_context(serving(teacher.app()))
        settings = settings_for(
            folder,
            teacher,
            task=way.task,
            upstream=way.upstream,
            learner={"port": learner.port},
        )
        gateway = RunningGateway(settings)
        stack.callback(gateway.stop)
        name = ""
        if way.student:
            student = shared_students().publish(folder, 1, threshold=way.threshold, about=way.about)
            gateway.serve(student)
            name = student.name
        yield gateway, name


def said(response: httpx2.Response) -> str:
    """The text of an answer, plain or streamed, or the code of an error."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        body = response.json()
        if "error" in body:
            return str(body["error"]["code"])
        return str(body["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    return "".join(delta.get("content") or "" for delta in deltas)


def ours(response: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if "flywheel" in name}


def as_record(event: PromptEvent) -> Record:
    return Record(
        by=event.served_by,
        answer=event.answer,
        teacher_answer=event.teacher_answer,
        student=event.student is not None,
        attributes={k: v for k, v in event.attributes.items() if k != "channel"},
    )


@pytest.mark.parametrize("name", WAYS)
def test_each_way_out_is_counted_told_sent_and_recorded_as_the_table_says(
    tmp_path: Path, name: str
) -> None:
    way = WAYS[name]
    with world(tmp_path, way) as (gateway, student):
        answers = []
        for streams in (False, True):
            asks = {"user": "anna", **way.asks, "stream": streams}
            channel = {"x-flywheel-attribute-channel": "mail"}
            answers.append(gateway.chat(way.text, headers=channel, **asks))
        version = student if way.version == "student" else way.version
        for streams, answer in zip((False, True), answers, strict=True):
            assert answer.status_code == way.status
            assert said(answer) == way.says
            assert ("event-stream" in answer.headers["content-type"]) == (
                streams and answer.is_success
            )
            told = ours(answer)
            told.pop("x-flywheel-event-id")
            assert (told.pop("x-flywheel-confidence", None) is not None) == way.confidence
            assert told.pop("x-flywheel-unsure", None) == way.unsure
            assert told == {"x-flywheel-served-by": way.by, "x-flywheel-version": version}
            assert answer.headers.get("x-should-retry") == (None if way.retry else "false")
        wait_until(lambda: sum(counts(gateway).values()) == 2)
        assert counts(gateway) == {way.counted: 2}
        assert gateway.metric("request_seconds_count", served_by=way.counted[1]) == 2
        check_records(gateway, way, answers, student)


def counts(gateway: RunningGateway) -> dict[tuple[str, str, str], float]:
    """All chat requests, as they were counted."""
    return {
        (sample.labels["task"], sample.labels["served_by"], sample.labels["outcome"]): sample.value
        for family in gateway.registry.collect()
        for sample in family.samples
        if sample.name == "flywheel_gateway_requests_total"
    }


def check_records(
    gateway: RunningGateway, way: Way, answers: list[httpx2.Response], student: str
) -> None:
    ids = [answer.headers["x-flywheel-event-id"] for answer in answers]
    verdicts = [
        gateway.http.post("/v1/feedback", json={"id": one, "verdict": "bad"}).status_code
        for one in ids
    ]
    if way.record is None:
        assert verdicts == [404, 404]  # what is not captured is not remembered either
        assert gateway.events() == []
        return
    assert verdicts == [202, 202]
    wait_until(lambda: len(gateway.events()) == 4)
    events = {event.event_id: event for event in gateway.events()}
    for one in ids:
        event, verdict = events[one], events[f"{one}:feedback:1"]
        assert as_record(event) == way.record
        assert event.attributes["channel"] == "mail"
        assert (event.task, event.model) == (TASK, "desk")
        assert [message.content for message in event.messages] == [way.text]
        assert event.student is None or event.student.version == student
        by_teacher = way.record.by == "teacher"
        assert (event.teacher_model == "big-teacher") == by_teacher
        # A verdict repeats who said what to whom, and nothing that the teacher was paid for.
        for shared in ("task", "model", "messages", "answer", "served_by", "student", "user_key"):
            assert getattr(verdict, shared) == getattr(event, shared), shared
        assert verdict.feedback is not None
        assert verdict.attributes == {"feedback_on": one}
        assert (verdict.teacher_answer, verdict.teacher_model, verdict.usage) == (None, None, None)
