"""Labels in answers, prompts as model input, and the question with its key."""

import json
from dataclasses import replace

import pytest
from core_samples import TASK

from pipelines.ask import TeacherPolicy, ask, cost
from pipelines.label import read_label, write_answer
from pipelines.render import classifier_text, label_text, teacher_messages
from pipelines.types import Message

TALK = (
    Message("system", "Sort this. "),
    Message("user", " where is it?\n"),
    Message("assistant", "delivery"),
    Message("user", "no, my MONEY"),
)
POLICY = TeacherPolicy(
    model="large-1",
    temperature=0.0,
    max_tokens=16,
    max_tokens_field="max_tokens",
    price_per_million_in=2.0,
    price_per_million_out=8.0,
)


@pytest.mark.parametrize("pointer", ["/intent", "/a~1b/c~0d", "/", "/result/0/label"])
def test_student_writes_the_answer_that_is_read_as_its_label(pointer: str) -> None:
    task = replace(TASK, answer_pointer=pointer)
    assert read_label(write_answer("refund", task), task) == "refund"


def test_pointer_into_a_list_writes_a_list() -> None:
    task = replace(TASK, answer_pointer="/result/0/label")
    assert json.loads(write_answer("refund", task)) == {"result": [{"label": "refund"}]}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('{"intent": "refund", "why": "delivery"}', "refund"),
        ('```json\n{"intent": "Refund"}\n```', "refund"),
        ('```\n{"intent": "refund"}```', "refund"),
        ('{"intent": ["refund", "delivery"]}', None),
        ('{"intent": 3}', None),
        ('{"Intent": "refund"}', None),
        ('Here it is: {"intent": "refund"}', None),
        ("refund", None),
        ("[" * 100_000, None),
    ],
)
def test_label_is_read_at_its_pointer_and_nowhere_else(answer: str, label: str | None) -> None:
    assert read_label(answer, replace(TASK, answer_pointer="/intent")) == label


def test_negative_place_in_a_list_is_none() -> None:
    assert read_label('["refund"]', replace(TASK, answer_pointer="/-1")) is None


@pytest.mark.parametrize(
    ("reads", "text"),
    [
        ("last_user", "no, my MONEY"),
        ("all_user", " where is it?\n\nno, my MONEY"),
        ("conversation", "system: Sort this. \nuser:  where is it?\n\nassistant: delivery\n"
                         "user: no, my MONEY"),
    ],
)  # fmt: skip
def test_classifier_reads_what_the_task_says(reads: str, text: str) -> None:
    assert classifier_text(TALK, replace(TASK, reads=reads)) == text  # type: ignore[arg-type]


def test_conversation_without_a_user_reads_as_nothing() -> None:
    assert classifier_text(TALK[:1], TASK) == ""


def test_teacher_reads_the_messages_verbatim() -> None:
    told = replace(TASK, instructions="Answer with one label.")
    expected = [{"role": m.role, "content": m.content} for m in TALK]
    assert teacher_messages(TALK, told) == expected
    developer = (Message("developer", "Sort."), *TALK[1:])
    assert teacher_messages(developer, told)[0] == {"role": "developer", "content": "Sort."}


def test_instructions_come_first_where_there_is_no_system_prompt() -> None:
    told = replace(TASK, instructions="Answer with one label.")
    assert teacher_messages(TALK[1:], told)[0] == {
        "role": "system",
        "content": "Answer with one label.",
    }
    assert len(teacher_messages(TALK[1:], TASK)) == 3


def test_label_names_read_as_phrases() -> None:
    assert label_text("card_not-arrived.yet") == "card not arrived yet"


def test_equal_questions_have_one_key() -> None:
    one, other = ask("e-1", TALK, TASK, POLICY), ask("e-2", TALK, TASK, POLICY)
    assert one.key == other.key
    assert one.event_id != other.event_id


def test_key_changes_with_everything_that_changes_the_answer() -> None:
    told = replace(TASK, instructions="Answer with one label.")
    keys = [
        ask("e", TALK, TASK, POLICY).key,
        ask("e", TALK[1:], TASK, POLICY).key,
        ask("e", TALK, told, POLICY).key,
        ask("e", TALK, replace(TASK, labels=("refund", "delivery")), POLICY).key,
        ask("e", TALK, replace(TASK, answer_pointer="/intent"), POLICY).key,
        ask("e", TALK, TASK, replace(POLICY, model="large-2")).key,
        ask("e", TALK, TASK, replace(POLICY, temperature=0.5)).key,
        ask("e", TALK, TASK, replace(POLICY, max_tokens=17)).key,
    ]
    assert len(set(keys)) == len(keys)


def test_price_does_not_change_the_key() -> None:
    dearer = replace(POLICY, price_per_million_in=99.0)
    assert ask("e", TALK, TASK, dearer).key == ask("e", TALK, TASK, POLICY).key


def test_reserved_tokens_are_a_bound_in_every_script() -> None:
    """Some tokenizers need a token for each byte of what they rarely saw."""
    text = "退款在哪里🙂" * 50
    question = ask("e", (Message("user", text),), TASK, POLICY)
    assert question.tokens >= len(text.encode()) + POLICY.max_tokens


def test_cost_is_tokens_times_price() -> None:
    assert cost(1_000_000, 500_000, POLICY) == pytest.approx(6.0)


def test_temperature_may_be_left_out() -> None:
    question = ask("e", TALK, TASK, replace(POLICY, temperature=None))
    assert "temperature" not in question.parameters
    assert question.parameters["max_tokens"] == 16
