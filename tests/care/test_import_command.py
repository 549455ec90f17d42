"""`flywheel import` as an operator types it: names of columns, a look first, whose answers."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import log_samples as samples
import pytest
from log_samples import ANSWER, MODEL, PROMPT, SAMPLES
from typer.testing import CliRunner, Result

from pipelines.errors import ExitCode, SettingsError
from pipelines.intake import Assessed, Rules
from pipelines.types import Record
from service.care.logs.mapping import lookup, read_map
from service.cli import app
from service.keys import open_keys
from service.rules import intake_rules
from service.settings import load_settings
from service.topics.embedded import EmbeddedTopicReader

TERMS = "contract 7, section 4"
SETTINGS = f"""
[teacher]
model = "large-1"
terms = "{TERMS}"
terms_allow_training = true
[tasks.support]
models = ["{MODEL}"]
labels = ["refund", "{ANSWER}"]
target = 0.9
"""


class Desk:
    """An installation with its topic, and the verb run in it."""

    def __init__(self, folder: Path, more: str = SETTINGS) -> None:
        self.folder, self.config = folder, folder / "flywheel.toml"
        self.config.write_text(f"data_dir = {json.dumps(str(folder / 'data'))}\n{more}")

    def log(self, name: str, *rows: Any) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def run(self, *words: object) -> Result:
        there = ["--config", str(self.config), "import", *map(str, words)]
        return CliRunner().invoke(app, there)

    def rules(self) -> Rules:
        settings = load_settings(self.config)
        return intake_rules(settings, open_keys(settings.data_dir))

    def topic(self) -> list[Assessed]:
        """What ingest makes of the topic."""
        path = self.folder / "data" / "topic.sqlite"
        if not path.exists():
            return []
        with closing(EmbeddedTopicReader(path)) as reader:
            reader.seek({})
            records: list[Record] = [*reader.poll(max_records=99, timeout_seconds=0.05).records]
        rules = self.rules()
        events, letters = rules.read("prompts", records, "")
        assert letters == []
        return [rules.assessed(event) for event in events]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --map


ODD_ROW: dict[str, Any] = {
    "q": {"de": {"text": PROMPT}},
    "out": [{"value": ANSWER}],
    "customer.id": "anna",
    "at": "2026-01-02 03:04:05",
    "geo": '{"region": "eu"}',
    "app": MODEL,
    "key": 7,
    "rules": "Sort.",
}
NAMES = ("text=q.de.text", "answer=out.0.value", "user=customer.id", "time=at", "model=app",
         "id=key", "system=rules", "metadata.region=geo.region")  # fmt: skip


def mapped(*names: str) -> list[str]:
    return [word for name in names for word in ("--map", name)]


def test_any_record_is_read_by_the_names_that_the_operator_gives(desk: Desk) -> None:
    done = desk.run(desk.log("odd.jsonl", ODD_ROW), *mapped(*NAMES))
    assert done.exit_code == 0, done.output
    (one,) = desk.topic()
    event = one.event
    assert [(m.role, m.content) for m in event.messages] == [("system", "Sort."), ("user", PROMPT)]
    assert (event.task, event.answer) == ("support", ANSWER)
    assert event.occurred_at == samples.WHEN
    assert event.user_key is not None
    assert event.attributes == {"region": "eu"}
    assert done.output.endswith("answers: 1 as the app's, which are none\n")


def test_a_name_goes_before_what_the_records_shape_says(desk: Desk) -> None:
    row = {**samples.LITELLM, "model_group": "old", "metadata": {"app": MODEL, "tenant": "a"}}
    done = desk.run(desk.log("log.jsonl", row), "--map", "model=metadata.app")
    assert done.exit_code == 0, done.output
    assert [one.event.task for one in desk.topic()] == ["support"]
    assert desk.topic()[0].event.answer == ANSWER


def test_a_prompt_in_a_strange_place_costs_nothing_else_that_the_shape_says(desk: Desk) -> None:
    """Langfuse's `input` is whatever a decorated function was given."""
    row = {**samples.LANGFUSE, "input": {"args": [], "kwargs": {"question": PROMPT}}}
    path = desk.log("log.jsonl", row)
    refused = desk.run(path)
    assert refused.exit_code == ExitCode.NOT_ALL_TAKEN
    assert "no prompt where its tool puts it: say where it is with --map" in refused.output
    done = desk.run(path, *mapped("text=input.kwargs.question", "system=name"))
    assert done.exit_code == 0, done.output
    ((event, *_),) = [(one.event, one) for one in desk.topic()]
    assert [message.content for message in event.messages] == ["classify", PROMPT]
    assert (event.answer, event.occurred_at) == (ANSWER, samples.WHEN)
    assert event.user_key is not None


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["txt=q"], "the field is one of text, messages"),
        (["text"], "write field=column"),
        (["text="], "write field=column"),
        (["metadata.=q"], "metadata.NAME"),
        (["text=q.de.text", "text=q"], "names text twice"),
        (["text=q.de.txt"], "no record has q.de.txt (for text)"),
        (["text=q.de.text", "user=who"], "no record has who (for user)"),
        (["answer=out.3.value"], "no record has out.3.value (for answer)"),
    ],
)
def test_a_name_that_is_nowhere_is_said_before_anything_is_sent(
    desk: Desk, names: list[str], reason: str
) -> None:
    done = desk.run(desk.log("odd.jsonl", ODD_ROW, ODD_ROW), *mapped(*names), "--model", MODEL)
    assert isinstance(done.exception, SettingsError)
    assert reason in str(done.exception)
    assert desk.topic() == []


def test_a_column_that_only_the_last_record_has_is_one(desk: Desk) -> None:
    rows = [{"q": "a"} for _ in range(2_000)] + [{"q": "b", "who": "anna"}]
    names = mapped("text=q", "user=who")
    assert desk.run(desk.log("log.jsonl", *rows), *names, "--model", MODEL).exit_code == 0


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", {"b": [1, {"c": 2}]}),
        ("a.b.0", 1),
        ("a.b.-1.c", 2),
        ("x.y", 3),
        ("x.y.z", 4),
        ("text.k", 5),
        ("a.b.2", None),
        ("a.b.c", None),
        ("a.b.0.c", None),
        ("", None),
    ],
)
def test_a_path_leads_into_objects_lists_texts_and_names_with_dots(path: str, found: Any) -> None:
    row = {"a": {"b": [1, {"c": 2}]}, "x.y": 3, "x": {"y": {"z": 4}}, "text": '{"k": 5}'}
    assert lookup(row, path) == found


def test_names_are_read_with_their_blanks_taken_off() -> None:
    assert read_map([" text = my question "]) == {"text": "my question"}


# --look


def test_a_look_shows_what_was_understood_and_sends_nothing(desk: Desk) -> None:
    evil = {**samples.LITELLM, "messages": [{"role": "user", "content": "\x1b[2J red \u202e"}]}
    path = desk.log("log.jsonl", samples.LITELLM, evil, {"nothing": 1}, {**samples.LITELLM,
                    "model_group": "gpt", "response": None})  # fmt: skip
    done = desk.run(path, "--look")
    assert done.exit_code == 0
    assert not (desk.folder / "data").exists()
    assert "log.jsonl line 1, read as LiteLLM" in done.output
    for told in ("support", MODEL, PROMPT, f"{ANSWER}  (the app's)", "region=eu", "2026-01-02"):
        assert told in done.output
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert "line 3\n  cannot be used: neither text nor messages" in done.output
    assert "none claims the model" in done.output
    assert done.output.endswith("Nothing was sent.\n")
    as_json = json.loads(desk.run(path, "--look", "--json").output)
    assert [one["line"] for one in as_json] == [1, 2, 3, 4]
    assert as_json[0]["user_key"]


def test_a_look_at_what_cannot_be_used_ends_with_the_named_code(desk: Desk) -> None:
    assert desk.run(desk.log("a.jsonl", {"x": 1}), "--look").exit_code == ExitCode.NOT_ALL_TAKEN
    assert desk.run(desk.log("b.jsonl"), "--look").exit_code == ExitCode.NOT_ALL_TAKEN


# Whose answers these are


def test_a_teachers_answers_become_labels_under_the_terms_that_were_said(desk: Desk) -> None:
    cut = {"choices": [{"message": {"content": "refund"}, "finish_reason": "length"}]}
    path = desk.log(
        "log.jsonl",
        samples.LITELLM,
        {**samples.LITELLM, "id": "c-8", "response": cut},
        {**samples.LITELLM, "id": "c-9", "response": None},
        {**samples.LITELLM, "id": "c-10", "response": "I would say neither"},
        SAMPLES["our own record"][1],
    )
    done = desk.run(path, "--teacher-answers", TERMS)
    assert done.exit_code == 0, done.output
    assert done.output.endswith(
        "1 of the teacher's answers are none of the task's labels\n"
        "answers: 3 as the teacher's, which are labels, 1 as the app's, which are none, "
        "1 records without\n"
    )
    labels = [desk.rules().free_label(one) for one in desk.topic()]
    assert [label and (label.label, label.teacher_model, label.terms) for label in labels] == [
        (ANSWER, "large-1", TERMS), None, None, None, (ANSWER, "large-1", TERMS),
    ]  # fmt: skip
    assert [one.event.answer for one in desk.topic()][:2] == [ANSWER, "refund"]


def test_without_a_word_about_the_teacher_no_answer_is_a_label(desk: Desk) -> None:
    path = desk.log("log.jsonl", *(row for _, row, _ in SAMPLES.values()))
    done = desk.run(path, "--model", MODEL)
    answered = len(SAMPLES) - 1  # a batch's input without its output
    assert f"answers: {answered} as the app's, which are none, 1 records without\n" in done.output
    topic = desk.topic()
    assert len(topic) == len(SAMPLES)
    assert {desk.rules().free_label(one) for one in topic} == {None}


@pytest.mark.parametrize(
    ("settings", "terms", "reason"),
    [
        (SETTINGS, "another contract", f'"{TERMS}"; give these'),
        (SETTINGS, "", "give these"),
        (SETTINGS.replace("= true", "= false"), TERMS, "terms_allow_training say so"),
        (SETTINGS.replace(TERMS, ""), TERMS, "teacher.terms"),
    ],
)
def test_answers_are_no_labels_under_terms_that_are_not_recorded(
    tmp_path: Path, settings: str, terms: str, reason: str
) -> None:
    desk = Desk(tmp_path, settings)
    done = desk.run(desk.log("log.jsonl", samples.LITELLM), "--teacher-answers", terms)
    assert isinstance(done.exception, SettingsError)
    assert reason in str(done.exception)
    assert desk.topic() == []


def test_a_task_that_is_said_claims_all_models_and_must_exist(desk: Desk) -> None:
    path = desk.log("log.jsonl", {**samples.LITELLM, "model_group": None})
    assert desk.run(path).exit_code == ExitCode.NOT_ALL_TAKEN
    assert desk.run(path, "--task", "support").exit_code == 0
    assert [one.event.task for one in desk.topic()] == [None, "support"]
    unknown = desk.run(path, "--task", "suport")
    assert "There is no task suport; there are: support" in str(unknown.exception)


# What was not taken


def test_a_log_of_which_not_all_was_taken_ends_with_a_named_code_and_says_why(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    first = desk.log("first.jsonl", {"text": "a", "model": MODEL}, {"text": "b"}, ["x"])
    second = desk.log("second.jsonl", {"text": "c", "model": MODEL, "messages": 7})
    command = [sys.executable, "-m", "service", "--config", str(desk.config), "import"]
    done = subprocess.run(
        [*command, str(first), str(second)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.NOT_ALL_TAKEN
    assert done.stderr.splitlines() == [
        "line 2: first.jsonl: no model, and none was named for the whole file (--model)",
        "line 3: first.jsonl: not a JSON object",
        "line 1: second.jsonl: no prompt where its tool puts it: say where it is with --map",
    ]
    assert done.stdout.startswith("1 of 4 records are on the topic\n")


def test_a_log_with_nothing_in_it_ends_with_a_named_code(desk: Desk) -> None:
    for path in (desk.log("empty.jsonl"), desk.log("spans.jsonl", samples.otlp())):
        done = desk.run(path)
        assert done.exit_code == ExitCode.NOT_ALL_TAKEN
        assert "0 of 0 records" in done.output
