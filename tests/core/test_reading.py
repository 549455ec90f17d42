"""An answer is read as a person reads it: typography is forgiven, mentions are not."""

import json
import time
from dataclasses import replace

import pytest
from core_samples import TASK
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.label import read_label

WORDS = replace(TASK, labels=("refund", "account_access", "card not-arrived", "other"))
FIELD = replace(WORDS, answer_pointer="/label")

FORGIVEN = (
    "refund", "  Refund.\n", '"REFUND"', "`refund`", "**refund**", "*refund*", "__Refund__",
    "***refund.***", "**Refund.**", "“refund”", "«refund»", "「refund」", "„refund“", "‘refund’",
    "refund!", "(refund)", "[refund]", "【refund】", "refund。", "refund…", "- refund", "* refund",
    "• refund", "1. refund", "1) refund", "# refund", "### **Refund**", "> refund", "→ refund",
    "Label: refund", "label：refund", "**Label:** refund", "**Label**: `refund`",
    "Answer: “refund”",
    "Final answer: refund.", "Category: Refund", "Kategorie: refund", "分类：refund",
    "<label>refund</label>", "<answer>\nrefund\n</answer>", "\\boxed{refund}", "$\\boxed{refund}$",
    "$\\boxed{\\text{refund}}$", "```\nrefund\n```", "```text\nrefund\n```", "~~~\nrefund\n~~~",
    "```refund```", "The customer wants money.\n\n```\nrefund\n```\nI hope that helps.",
    "refund</s>", "refund<|im_end|>", "refund<|eot_id|>\n", "<|start|>refund<end_of_turn>",
    "\ufeffrefund", "re\u200bfund", "ｒｅｆｕｎｄ", "refund\u00a0", "\u200erefund",
    '{"label": "refund"}', '{"Intent": "Refund"}', '["refund"]', '[{"label": "refund"}]',
    '```json\n{"label": "refund"}\n```', '"{\\"label\\": \\"refund\\"}"', "&quot;refund&quot;",
    "<think>\nIs it delivery? No.\n</think>\n\nrefund", "it may be delivery</think>refund",
    "<Thinking>delivery</Thinking> **refund**", "[THINK]delivery[/THINK]refund",
    "◁think▷delivery◁/think▷refund", "refund\n<reasoning>because</reasoning>",
    "<think>a </think> in the text</think>refund", "<think></think>refund", "refund <think>cut off",
    "<|channel|>analysis<|message|>delivery<|end|><|start|>assistant<|channel|>final<|message|>"
    "refund<|return|>",
    "<label>refund</label><reason>they ask for money</reason>",
)  # fmt: skip
MENTIONS = (
    "", " ", "The label is refund", "refund or delivery", "refunds", "not refund", "Not: refund",
    "no refund", "refund?", "refund, other", "refund\nother", "- refund\n- other", "refund refund",
    "I would say refund.", "Label: refund or other", "Label: not refund", "<not>refund",
    "<think>refund", "<think>refund</think>", "I think it is </think>",
    "```\nrefund\n```\n```\nother\n```",
    '["refund", "other"]', '{"not": "refund"}', '{"label": "refund", "why": "x"}', "{}", "[]",
    "null", "<|channel|>analysis<|message|>refund", "**refund** and **other**", "refund: the money",
    '"refund" or "other"', "(refund) (other)", "re fund", "ref und",
)  # fmt: skip


@pytest.mark.parametrize("answer", FORGIVEN)
def test_typography_is_forgiven(answer: str) -> None:
    assert read_label(answer, WORDS) == "refund"


@pytest.mark.parametrize("answer", MENTIONS)
def test_an_answer_that_only_mentions_a_label_is_no_label(answer: str) -> None:
    assert read_label(answer, WORDS) is None


@pytest.mark.parametrize(
    "answer",
    ["account access", "Account-Access", "account\\_access", "ACCOUNT_ACCESS", "account  access"],
)
def test_separators_are_forgiven(answer: str) -> None:
    assert read_label(answer, WORDS) == "account_access"
    assert read_label("Card_Not arrived", WORDS) == "card not-arrived"


@pytest.mark.parametrize(
    "answer",
    [
        '{"label": "refund"}', '{"label": "**Refund**", "confidence": 0.9}',
        '```JSON\n{"label": "refund"}\n```', 'Here it is:\n```json\n{"label": "refund"}\n```\nBye.',
        '\ufeff{"label": "refund"}', '[{"label": "refund"}]', '{"label": ["refund"]}',
        '<think>{"label": "other"}</think>\n{"label": "refund"}', '{"label": "refund"}<|im_end|>',
        '"{\\"label\\": \\"refund\\"}"', '```\n{"label": "refund"}```',
    ],
)  # fmt: skip
def test_the_pointer_is_followed_through_typography(answer: str) -> None:
    assert read_label(answer, FIELD) == "refund"


@pytest.mark.parametrize(
    "answer",
    [
        "refund", '{"Label": "refund"}', '{"label": null}', '{"label": {"label": "refund"}}',
        'Here it is: {"label": "refund"}', '{"label": ["refund", "other"]}',
        '[{"label": "refund"}, 2]',
        '{"label": "a refund"}', '{"label": "refund"', "[" * 100_000, '{"label": ' * 50_000,
    ],
)  # fmt: skip
def test_what_is_not_at_the_pointer_is_no_label(answer: str) -> None:
    assert read_label(answer, FIELD) is None


@pytest.mark.parametrize(
    ("answer", "label"),
    [("4", "4"), ("4.", "4"), ('{"stars": 4}', "4"), ('{"stars": 4.0}', "4"),
     ('{"stars": "4"}', "4"), ('{"stars": 4.5}', None), ('{"stars": 10}', None),
     ('{"stars": -4}', None), ('{"stars": true}', None)],
)  # fmt: skip
def test_numbers_are_labels_where_labels_are_numbers(answer: str, label: str | None) -> None:
    stars = replace(TASK, labels=("1", "2", "3", "4", "5"))
    assert (
        read_label(answer, replace(stars, answer_pointer="/stars") if "{" in answer else stars)
        == label
    )


def test_true_and_false_are_labels_too() -> None:
    flags = replace(TASK, labels=("true", "false"), answer_pointer="/spam")
    assert read_label('{"spam": true}', flags) == "true"
    assert read_label('{"spam": "False"}', flags) == "false"
    assert read_label('{"spam": 1}', flags) is None


def test_labels_keep_what_tells_them_apart() -> None:
    odd = replace(
        TASK, labels=("etc.", "n/a", "C", "C++", "C#", "us", "US", "-1", "1", "a_b", "a-b")
    )
    for label in odd.labels:
        for answer in (label, f"**{label}**", f'"{label}".', f"Label: {label}", f" {label}\n"):
            assert read_label(answer, odd) == label, answer
    assert read_label("Etc", odd) is None
    assert read_label("Us", odd) is None, "either of two"
    assert read_label("a b", odd) is None, "either of two"


LAYERS = st.sampled_from(
    ["{}", " {}\n", "**{}**", "*{}*", "`{}`", '"{}"', "“{}”", "({})", "{}.", "{}!", "- {}",
     "Label: {}", "<answer>{}</answer>", "> {}"]
)  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(LAYERS, max_size=4),
    st.sampled_from(WORDS.labels),
    st.sampled_from([str, str.upper, str.title]),
)
def test_layers_may_come_in_any_order(layers: list[str], label: str, case: object) -> None:
    answer = case(label)  # type: ignore[operator]
    for layer in layers:
        answer = layer.format(answer)
    assert read_label(answer, WORDS) == label
    assert read_label(f"<think>other, or rather\nnot</think>\n\n{answer}", WORDS) == label
    assert "```" in answer or read_label(f"As you wish:\n```\n{answer}\n```", WORDS) == label


@settings(deadline=None)
@given(
    st.text(alphabet=st.characters(categories=("L", "N")), min_size=1, max_size=8),
    st.sampled_from(WORDS.labels),
    st.booleans(),
    LAYERS,
)
def test_one_more_word_makes_it_a_mention(word: str, label: str, first: bool, layer: str) -> None:
    answer = layer.format(f"{word} {label}" if first else f"{label} {word}")
    assert read_label(answer, WORDS) is None
    answer = layer.format(f"{word}{label}" if first else f"{label}{word}")
    assert read_label(answer, WORDS) is None


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert read_label(text, WORDS) in (None, *WORDS.labels)
    assert read_label(text, FIELD) in (None, *WORDS.labels)
    assert read_label(json.dumps({"label": text}), FIELD) == read_label(json.dumps([text]), WORDS)


def test_a_hostile_answer_takes_no_time() -> None:
    hostile = (
        "<think>",
        "</think>",
        "```\n",
        "``` x\n",
        "<a>",
        "**",
        '"',
        "<|x|>",
        "{",
        "\\boxed{",
        "- ",
        "( ",
    )
    for part in hostile:
        started = time.perf_counter()
        for ending in ("", "refund"):
            read_label(part * 30_000 + ending, WORDS)
            read_label(part * 30_000 + ending, FIELD)
        assert time.perf_counter() - started < 3.0, part  # a tenth of that, on a machine at rest
