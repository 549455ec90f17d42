"""The log can be followed by an operator: a sentence an event, once, and no prompt's text."""

import ast
import json
import logging
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from lived_in import LivedIn
from structlog.testing import capture_logs

from service.host.log_sentences import SENTENCES
from service.host.logs import FIRST_PAUSE_SECONDS, REPEATING, Repeats, quiet, set_up_logs

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception"}
# What a healthy run may warn of where the host is busy with other work.
BUSY_HOST = {"assessment_unavailable", "lease_not_renewed", "escalation_stopped"}
SHORTEST_TEXT = 25  # characters of a prompt that cannot be in a log by chance

SPEAKER = """
import logging, structlog
from service.host.logs import set_up_logs
set_up_logs("learner")
log = structlog.get_logger()
log.error("training_failed", task="support", reason="out of memory")
for _ in range(50):
    log.warning("teacher_call_failed", outcome="unknown", detail="the teacher said 500")
log.info("something_new", text="x" * 5000)
for number in range(7, 40):
    logging.getLogger("kafka.conn").warning("connection %s lost", number)
logging.getLogger("kafka.conn").info("of no interest")
try:
    raise RuntimeError("broken")
except RuntimeError:
    log.exception("job_failed", job="watch")
"""


def logged() -> Iterator[tuple[str, str, Path]]:
    """Level and event of every line that the code can write."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                event, known = node.args[0], "nothing"
                if isinstance(event, ast.JoinedStr) and isinstance(event.values[0], ast.Constant):
                    known = str(event.values[0].value)  # one of those that begin like this
                fixed = [str(event.value)] if isinstance(event, ast.Constant) else []
                names = fixed or [name for name in SENTENCES if name.startswith(known)]
                assert names, f"{path}:{node.lineno} has no fixed name"
                yield from ((node.func.attr, name, path) for name in names)


def test_every_event_has_a_sentence_and_every_sentence_an_event() -> None:
    said = {event for level, event, _ in logged() if level != "debug"}
    assert set(SENTENCES) - said == set()
    assert said - set(SENTENCES) == set(), "write it into service/host/log_sentences.py"


@pytest.mark.parametrize("event", SENTENCES)
def test_a_sentence_is_one_line_for_a_person(event: str) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", event)
    assert re.fullmatch(r"(?!.*\{)[A-Z a-z].{10,95}\.", SENTENCES[event])


def test_only_known_events_are_held_back() -> None:
    assert set(SENTENCES) >= REPEATING


@pytest.fixture(scope="module")
def spoken() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKER], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_begins_with_when_how_bad_who_what_and_the_sentence(
    spoken: list[dict[str, Any]],
) -> None:
    line = spoken[0]
    assert list(line)[:5] == ["timestamp", "level", "process", "event", "sentence"]
    assert line["sentence"] == SENTENCES["training_failed"]
    assert (line["level"], line["process"], line["task"]) == ("error", "learner", "support")


def test_what_is_tried_again_and_again_is_said_once(spoken: list[dict[str, Any]]) -> None:
    assert [line["event"] for line in spoken].count("teacher_call_failed") == 1


def test_a_long_field_is_cut(spoken: list[dict[str, Any]]) -> None:
    (line,) = (one for one in spoken if one["event"] == "something_new")
    assert len(line["text"]) < 1100


def test_libraries_speak_in_the_same_shape_and_only_to_warn(spoken: list[dict[str, Any]]) -> None:
    (line,) = (one for one in spoken if one["event"] == "library_said")
    assert line["sentence"] == "connection 7 lost"
    assert (line["logger"], line["level"], line["process"]) == ("kafka.conn", "warning", "learner")


def test_a_traceback_is_in_the_line_of_its_event(spoken: list[dict[str, Any]]) -> None:
    assert "RuntimeError: broken" in spoken[-1]["exception"]


def test_repeats_come_less_and_less_often_with_their_number() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)
    shown = []
    for second in range(0, 4 * 3600, 2):
        now = float(second)
        try:
            shown.append((second, dict(repeats(None, "", {"event": "job_failed", "job": "watch"}))))
        except structlog.DropEvent:
            continue
    times = [second for second, _ in shown]
    assert times[:3] == [0, FIRST_PAUSE_SECONDS, 3 * FIRST_PAUSE_SECONDS]
    assert 8 <= len(times) <= 16
    assert sum(line.get("held_back", 0) for _, line in shown) + len(shown) > 4 * 3600 / 2 - 1000


def test_other_fields_make_another_line_and_after_a_long_silence_it_begins_anew() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)
    assert repeats(None, "", {"event": "job_failed", "job": "a"})
    assert repeats(None, "", {"event": "job_failed", "job": "b"})
    with pytest.raises(structlog.DropEvent):
        repeats(None, "", {"event": "job_failed", "job": "a"})
    now = 3600.0
    assert repeats(None, "", {"event": "job_failed", "job": "a"})["held_back"] == 1
    now += FIRST_PAUSE_SECONDS
    assert repeats(None, "", {"event": "job_failed", "job": "a"})


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_whole_life_says_each_event_once_and_no_prompts_text(lived_in: LivedIn) -> None:
    """Two trainings, two approvals, a backup, the end: what the operator would read."""
    text = (lived_in.folder / "flywheel.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "gateway", "learner"}
    said = {line["event"] for line in lines}
    assert said >= {"training_succeeded", "version_judged", "student_swapped", "learner_stopped"}
    troubles = {line["event"] for line in lines if line["level"] in ("warning", "error")}
    assert troubles <= BUSY_HOST, [line for line in lines if line["event"] in troubles]
    assert all(line["sentence"].endswith(".") for line in lines)

    said_at: dict[str, datetime] = {}
    for line in lines:
        at = datetime.fromisoformat(line.pop("timestamp"))
        before = said_at.get(json.dumps(line))
        assert before is None or at - before > timedelta(seconds=5), f"said twice: {line}"
        said_at[json.dumps(line)] = at
    assert len(lines) < 60, "more than an operator reads"

    prompts = _prompts(lived_in.data)
    assert len(prompts) > 300, "the oracle"
    assert {prompt for prompt in prompts if prompt in text} == set()


def _prompts(data: Path) -> set[str]:
    """The texts that customers wrote, from the embedded topic itself."""
    topic = sqlite3.connect(f"file:{data / 'topic.sqlite'}?mode=ro", uri=True)
    values = [value for (value,) in topic.execute("SELECT value FROM records")]
    topic.close()
    texts = {
        message["content"]
        for value in values
        for message in json.loads(value).get("messages", [])
        if message["role"] == "user"
    }
    return {one for one in texts if len(one) >= SHORTEST_TEXT}


def test_the_root_logger_is_left_alone_by_imports() -> None:
    code = (
        "import logging, service.gateway.app, service.learner.daemon, service.supervisor\n"
        "assert not logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_logger_that_has_spoken_follows_whoever_sets_up_the_logs_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = structlog.get_logger()
    set_up_logs("learner")
    log.warning("training_failed")
    assert json.loads(capsys.readouterr().err)["process"] == "learner"
    set_up_logs("gateway")
    with quiet(logging.ERROR):
        log.warning("training_failed")
    with capture_logs() as said:
        log.warning("training_failed")
    assert [line["event"] for line in said] == ["training_failed"]
    assert capsys.readouterr().err == ""
    log.warning("training_failed")
    assert json.loads(capsys.readouterr().err)["process"] == "gateway"
