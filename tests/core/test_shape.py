"""What answers look like to an app that parses them, and the gate that compares it."""

from dataclasses import replace

import pytest
from core_samples import TASK

from pipelines.label import write_answer
from pipelines.shape import shape, unlike

THREE = '{"label": "refund", "confidence": 0.93, "reason": "they want money"}'
LOOKS = "{confidence: number, label: text, reason: text}"


@pytest.mark.parametrize(
    ("answer", "looks"),
    [
        ("refund", "text"),
        ("**Refund.**", "text"),
        ("4", "text"),
        ("[refund", "text"),
        ('{"label": "refund"}', "{label: text}"),
        (' {"label":"delivery"}\n', "{label: text}"),
        (f"<think>hm</think>\n```json\n{THREE}\n```", LOOKS),
        ('{"a": {"b": [1, null]}, "c": true}', "{a: {b: [null or number]}, c: truth value}"),
        ('{"my card 4929 was": 1}', "{…: number}"),
        ("[]", "[]"),
        ("[" * 200 + "]" * 200, "[[[[…]]]]"),
        ("", "text"),
    ],
)  # fmt: skip
def test_the_shape_is_keys_and_types_whatever_stands_around(answer: str, looks: str) -> None:
    assert shape(answer) == looks


def test_many_fields_are_counted() -> None:
    found = shape("{" + ", ".join(f'"f{n:02}": 1' for n in range(25)) + "}")
    assert found.endswith("and 5 more}")


def test_a_stray_answer_says_nothing_about_the_app() -> None:
    assert unlike("text", {"{a: text}": 4}) == ""
    assert unlike("text", {"{a: text}": 5}) != ""
    assert unlike("text", {"text": 95, "{a: text}": 5}) == ""


def test_a_students_answer_has_the_shape_of_one_field() -> None:
    assert shape(write_answer("refund", TASK)) == "text"
    assert shape(write_answer("refund", replace(TASK, answer_pointer="/a/b"))) == "{a: {b: text}}"
    assert shape(write_answer("refund", replace(TASK, answer_pointer="/0"))) == "[text]"
