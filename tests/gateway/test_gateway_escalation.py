"""Unsure requests: to the teacher within the lease, and answered, marked, without one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_rig import (
    LearnerSide,
    RunningGateway,
    Students,
    Teacher,
    serving,
    settings_for,
    shared_students,
    wait_until,
)

from service.gateway import lease
from service.keys import open_keys
from service.sections import BudgetSettings


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a learner may take longer than an app would wait."""
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 20.0)


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    teacher = Teacher()
    with serving(teacher.app()) as port:
        teacher.port = port
        yield teacher


@contextmanager
def unsure_gateway(
    folder: Path,
    teacher: Teacher | None,
    students: Students,
    *,
    calls: int = 100,
    money: float = 10.0,
    threshold: float | None = None,
    learner_lives: bool = True,
    near: float | None = None,
    radius: float | None = None,
    **more: Any,
) -> Iterator[tuple[RunningGateway, LearnerSide]]:
    """A gateway whose student is unsure of everything (unless told otherwise)."""
    budget = BudgetSettings(escalation_calls=calls, escalation_money=money, lease_calls=calls or 1)
    learner = LearnerSide(folder, open_keys(folder), budget)
    with learner.running():
        settings = settings_for(folder, teacher, learner={"port": learner.port}, **more)
        gateway = RunningGateway(settings)
        student = students.publish(folder, 1, threshold=threshold, near=near, radius=radius)
        gateway.serve(student)
        if learner_lives:
            yield gateway, learner
            gateway.stop()
    if not learner_lives:
        yield gateway, learner
        gateway.stop()


def test_an_unsure_request_goes_to_the_teacher_within_the_lease(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    teacher.answer = "invoice"
    with unsure_gateway(tmp_path, teacher, students, calls=2) as (gateway, learner):
        answers = [gateway.chat(seed=5, max_tokens=9, user="u") for _ in range(4)]
        by = [answer.headers["x-flywheel-served-by"] for answer in answers]
        assert by == ["teacher", "teacher", "student", "student"]
        assert answers[0].json()["choices"][0]["message"]["content"] == "invoice"
        assert answers[0].headers["x-flywheel-version"] == "teacher"
        assert float(answers[0].headers["x-flywheel-confidence"]) > 0
        assert answers[2].headers["x-flywheel-unsure"] == "no_lease"
        assert answers[2].json()["choices"][0]["message"]["content"] == "delivery"
        headers, body = teacher.requests[0]
        assert headers["authorization"] == "Bearer our-own-key"
        sent = json.loads(body)
        assert sent["seed"] == 5
        assert sent["max_completion_tokens"] == 9
        assert sent["messages"] == [{"role": "user", "content": "where is my parcel"}]
        wait_until(lambda: len(gateway.events()) == 4)
        served, _, marked, _ = gateway.events()
        assert served.student is not None
        assert served.student.label == "delivery"
        assert served.teacher_answer == "invoice"
        assert served.usage is not None
        assert served.served_by == "teacher"
        assert served.attributes == {"unsure": "no_threshold", "escalation": "answered"}
        assert marked.served_by == "student"
        assert marked.teacher_answer is None
        assert marked.attributes == {"unsure": "no_threshold", "escalation": "no_lease"}
        wait_until(lambda: learner.book.spent().calls == 2)
        assert len(teacher.requests) == 2


def test_a_trace_goes_on_where_the_teacher_is_asked_in_the_students_place(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    ours = {"openai-organization": "org-1", "api-key": "app-key", "cookie": "app-key"}
    with unsure_gateway(tmp_path, teacher, students) as (gateway, _):
        for trace in ("one", "two"):
            headers = {"traceparent": trace, "x-request-id": trace, **ours}
            assert gateway.chat(headers=headers).headers["x-flywheel-served-by"] == "teacher"
    asked = [headers for headers, _ in teacher.requests]
    assert [(one["traceparent"], one["x-request-id"]) for one in asked] == [
        ("one", "one"), ("two", "two")
    ]  # fmt: skip
    assert not any({*ours} & {*one} for one in asked)


def test_what_lies_beyond_the_students_reach_is_asked_about_however_sure_it_is(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    known, reworded, novel = "where is my parcel", "is my parcel on its way", "my cat has a cold"
    with unsure_gateway(
        tmp_path, teacher, students, calls=1, threshold=0.0, near=0.05, radius=0.5
    ) as (gateway, _):
        answers = [gateway.chat(text) for text in (known, reworded, novel, novel)]
        by = [answer.headers["x-flywheel-served-by"] for answer in answers]
        assert by == ["student", "student", "teacher", "student"]
        unsure = [answer.headers.get("x-flywheel-unsure") for answer in answers]
        assert unsure == [None, None, None, "no_lease"]
        assert gateway.metric("unsure_total", task="support", reason="novel") == 2

        wait_until(lambda: len(gateway.events()) == 4)
        said = [event.student for event in gateway.events()]
        assert [one and (one.reach, one.unsure) for one in said] == [
            ("near", ""),
            ("far", ""),
            ("beyond", "novel"),
            ("beyond", "novel"),
        ]
        _, _, escalated, forced = gateway.events()
        assert escalated.attributes == {"unsure": "novel", "escalation": "answered"}
        assert forced.attributes == {"unsure": "novel", "escalation": "no_lease"}


def test_a_student_without_prototypes_finds_nothing_beyond_its_reach(
    tmp_path: Path, students: Students
) -> None:
    with unsure_gateway(tmp_path, None, students, threshold=0.0) as (gateway, _):
        answer = gateway.chat("my cat has a cold")
        assert answer.headers["x-flywheel-served-by"] == "student"
        assert "x-flywheel-unsure" not in answer.headers
        wait_until(lambda: len(gateway.events()) == 1)
        (event,) = gateway.events()
        assert event.student is not None
        assert event.student.reach is None


def test_sure_answers_do_not_ask_the_teacher_and_empty_or_endless_texts_do(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    with unsure_gateway(tmp_path, teacher, students, threshold=0.0) as (gateway, _):
        assert gateway.chat().headers["x-flywheel-served-by"] == "student"
        assert gateway.chat("  ").headers["x-flywheel-served-by"] == "teacher"
        assert gateway.chat("parcel " * 5000).headers["x-flywheel-served-by"] == "teacher"
        assert gateway.chat("parcel " * 500).headers["x-flywheel-served-by"] == "student"
        assert gateway.metric("truncated_total", task="support") == 2
    with unsure_gateway(tmp_path / "b", teacher, students, threshold=0.9999) as (gateway, _):
        assert gateway.chat().headers["x-flywheel-served-by"] == "teacher"
        assert gateway.metric("unsure_total", task="support", reason="below_threshold") == 1


def test_instructions_go_first_where_the_app_sent_none(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    task = {"instructions": "Name the intent."}
    with unsure_gateway(tmp_path, teacher, students, task=task) as (gateway, _):
        gateway.chat()
        sent = json.loads(teacher.requests[0][1])["messages"]
        assert sent[0] == {"role": "system", "content": "Name the intent."}


def test_an_escalated_stream_is_a_stream(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    with (
        unsure_gateway(tmp_path, teacher, students) as (gateway, _),
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as app,
    ):
        chunks = list(
            app.chat.completions.create(
                model="desk", messages=[{"role": "user", "content": "hm"}], stream=True
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "refund"
        assert {chunk.model for chunk in chunks} == {"big-teacher"}


def test_with_a_dead_learner_the_student_answers_marked_when_the_lease_is_over(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    with unsure_gateway(tmp_path, teacher, students, learner_lives=False) as (gateway, _):
        # No lease was taken while the learner lived.
        for _ in range(3):
            answer = gateway.chat()
            assert answer.status_code == 200
            assert answer.headers["x-flywheel-unsure"] == "no_lease"
        assert not teacher.requests


def test_a_failing_teacher_is_covered_by_the_student_and_soon_left_alone(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    teacher.status = 500
    with unsure_gateway(tmp_path, teacher, students) as (gateway, _):
        for _ in range(10):
            answer = gateway.chat()
            assert answer.headers["x-flywheel-unsure"] == "teacher_failed"
            assert answer.json()["choices"][0]["message"]["content"] == "delivery"
        assert 3 <= len(teacher.requests) < 10


def test_where_unsure_answers_are_not_wanted_they_are_refused(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    task = {"when_unsure": "refuse"}
    with unsure_gateway(tmp_path, teacher, students, calls=0, task=task) as (gateway, _):
        app = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=5)
        with app, pytest.raises(openai.InternalServerError) as raised:
            app.chat.completions.create(model="desk", messages=[{"role": "user", "content": "x"}])
        assert raised.value.status_code == 503
        assert raised.value.code == "unsure_no_lease"
        # The client is told not to try again.
        assert gateway.metric("unsure_total", task="support", reason="no_threshold") == 1
        wait_until(lambda: len(gateway.events()) == 1)
        assert gateway.events()[0].answer is None


def test_money_is_reserved_at_its_highest_and_settled_at_its_price(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    prices = {"price_per_million_in": 1000.0, "price_per_million_out": 10_000.0, "max_tokens": 10}
    with unsure_gateway(tmp_path, teacher, students, money=0.5, upstream=prices) as (
        gateway,
        learner,
    ):
        served = [gateway.chat().headers["x-flywheel-served-by"] for _ in range(10)]
        # 20 tokens in and 5 out cost 0.07; a call may cost about 0.2 before it is made.
        assert served.count("teacher") == 5
        # A renewal in the middle of the last call tells of the call before its money.
        wait_until(lambda: learner.book.spent().money == pytest.approx(0.35))
        assert learner.book.spent().calls == 5


def test_the_length_of_an_escalated_answer_is_bounded_whatever_the_app_asks(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    with unsure_gateway(tmp_path, teacher, students) as (gateway, _):
        for asked, sent in ((-1_000_000, 1), (10**9, 256), (None, 256), (7, 7)):
            gateway.chat(max_tokens=asked)
            assert json.loads(teacher.requests[-1][1])["max_completion_tokens"] == sent


def test_requests_that_the_teacher_finds_wrong_do_not_stop_escalation(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    teacher.status = 400
    with unsure_gateway(tmp_path, teacher, students, money=0.5) as (gateway, _):
        for _ in range(8):
            assert gateway.chat().headers["x-flywheel-unsure"] == "teacher_failed"
        assert len(teacher.requests) == 8


def test_a_gateway_that_ends_well_gives_its_lease_back(
    tmp_path: Path, teacher: Teacher, students: Students
) -> None:
    with unsure_gateway(tmp_path, teacher, students, calls=10) as (gateway, learner):
        gateway.chat()
        gateway.stop()
        again = RunningGateway(gateway.settings)
        wait_until(lambda: again.readyz()[1]["serving"] != {})
        assert again.chat().headers["x-flywheel-served-by"] == "teacher"
        again.stop()
        assert learner.book.spent().calls == 2
