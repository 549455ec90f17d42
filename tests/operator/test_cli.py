"""The command line: fast help, one clear message and a named exit code, and the same rules."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from console_server import TOKEN, seed, serve
from operating import BELOW, LABELS, TASK, Desk, open_desk

from pipelines.errors import ExitCode
from service import cli
from service.cli.help import EXIT_CODES, SECTIONS
from service.operator.status import Progress

ROOT = Path(__file__).parents[2]
HEAVY = ("duckdb", "fastapi", "onnxruntime", "numpy", "pydantic", "rich", "kafka", "openai")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Flywheel = Callable[..., Ended]


@pytest.fixture
def flywheel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Flywheel:
    """Runs the command line as `flywheel ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["flywheel", *arguments])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        found = capsys.readouterr()
        # The console answers in this process too, and its log lines are not the verb's.
        lines = [line for line in found.out.splitlines(True) if "[info     ]" not in line]
        return Ended(int(str(code or 0)), "".join(lines), found.err)

    return run


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A learner that answers, with its token where the command line looks for it."""
    with open_desk(tmp_path / "data") as opened:
        seed(opened)
        secrets = opened.folder / "secrets"
        (secrets / "operator.token").write_text(TOKEN)
        with serve(opened) as url:
            (opened.folder / "run").mkdir()
            noted = {"port": int(url.rsplit(":", 1)[1]), "pid": os.getpid()}
            (opened.folder / "run" / "learner.json").write_text(json.dumps(noted))
            yield opened


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['flywheel', '--help']\n"
        "from service.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print('HEAVY', [m for m in sys.modules if m in " + repr(HEAVY) + "])\n"
    )
    best = 9.0
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        best = min(best, time.monotonic() - start)
    assert "HEAVY []" in done.stdout
    assert best < 1.0  # 0.2 s on a quiet machine


def test_help_teaches_every_verb_and_exit_code(flywheel: Flywheel) -> None:
    text = flywheel("--help").out
    for section, names in SECTIONS.items():
        assert f"{section}:" in text
        for name in names:
            assert f"  {name} " in text
    assert set(EXIT_CODES) == set(ExitCode)
    assert "Examples:" in flywheel("approve", "--help").out


def test_every_verb_has_its_place_in_the_help() -> None:
    import typer

    named = {name for names in SECTIONS.values() for name in names}
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(commands) == named


def test_an_unknown_verb_is_a_usage_error(flywheel: Flywheel) -> None:
    assert flywheel("aprove").code == ExitCode.USAGE


def test_no_learner_is_said_so(flywheel: Flywheel, tmp_path: Path) -> None:
    ended = flywheel("status")
    assert ended.code == ExitCode.NOT_RUNNING
    assert "start the learner" in ended.err

    (tmp_path / "data" / "secrets").mkdir(parents=True)
    (tmp_path / "data" / "secrets" / "operator.token").write_text("t")
    config = tmp_path / "here.toml"
    config.write_text('data_dir = "data"\n[learner]\nport = 9\n')
    ended = flywheel("--config", str(config), "status")
    assert ended.code == ExitCode.NOT_RUNNING
    assert "flywheel run" in ended.err
    assert "Traceback" not in ended.err


def test_wrong_settings_end_with_their_code(flywheel: Flywheel, tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[teacher]\nmodle = 'x'\n")
    ended = flywheel("--config", str(config), "check")
    assert ended.code == ExitCode.SETTINGS
    assert "teacher.modle: there is no such setting" in ended.err


def test_check_names_what_is_missing_and_masks_secrets(flywheel: Flywheel, tmp_path: Path) -> None:
    assert flywheel("check").code == ExitCode.SETTINGS
    config = tmp_path / "good.toml"
    config.write_text(
        """
[teacher]
base_url = "https://teacher.example/v1"
model = "large"
api_key = "sk-very-secret"
terms = "contract of 2026-01-01"
terms_allow_training = true
[kafka.options]
sasl_plain_password = "kafka-secret"
sasl_plain_username = "flywheel"
[gateway]
keys = ["app-secret"]
[tasks.support]
models = ["gpt-support"]
labels = ["refund", "delivery"]
"""
    )
    ended = flywheel("--config", str(config), "check")
    assert ended.code == 0
    assert "secret" not in ended.out.replace("trusted", "")
    assert 'sasl_plain_username = "flywheel"' in ended.out
    assert "[tasks.support]" in ended.out
    assert "warning: teacher.price_per_million_in" in ended.err
    assert "note: task support: a first student needs 297 held-out prompts, because" in ended.err
    assert "99 items without an error to certify a target of 97 %" in ended.err

    as_json = flywheel("--config", str(config), "check", "--json")
    assert "very-secret" not in as_json.out
    assert json.loads(as_json.out)["settings"]["teacher"]["model"] == "large"


def test_status_puts_what_waits_first(flywheel: Flywheel, desk: Desk) -> None:
    text = flywheel("--data-dir", str(desk.folder), "status").out
    assert text.startswith("! support-v5 waits for your approval")
    assert "scripted: not a real model" in text
    assert "2-fold is due" in text  # why the last tick did nothing
    found = json.loads(flywheel("--data-dir", str(desk.folder), "status", "--json").out)
    assert found["tasks"][0]["champion"]["number"] == 3


def test_status_shows_how_far_a_training_is_and_its_loss(flywheel: Flywheel, desk: Desk) -> None:
    desk.board.progress = Progress(
        step=96, total=480, examples_per_second=12, seconds_left=32, phase="tune", loss=0.4312
    )
    text = flywheel("--data-dir", str(desk.folder), "status").out
    assert "tune: step 96 of 480, loss 0.431, 12 examples/s, 32 s left" in text


def test_versions_and_show_read_the_report(flywheel: Flywheel, desk: Desk) -> None:
    there = ("--data-dir", str(desk.folder))
    versions = flywheel(*there, "versions").out
    assert re.search(r"support-v5 +waiting +encoder-lora", versions)
    shown = flywheel(*there, "show", "support-v4").out
    assert "FAILED  4.7 %" in shown
    assert "Worst segments" in shown
    assert "can she still swap it" in shown
    assert flywheel(*there, "show").out.startswith("support-v5")
    assert flywheel(*there, "show", "support-v99").code == ExitCode.REFUSED


def test_show_prints_the_model_card(flywheel: Flywheel, desk: Desk) -> None:
    card = flywheel("--data-dir", str(desk.folder), "show", "5", "--card").out
    assert card == desk.operations.card(TASK, 5)


def test_export_writes_the_layout_of_hugging_face(
    flywheel: Flywheel, desk: Desk, tmp_path: Path
) -> None:
    there, folder = ("--data-dir", str(desk.folder)), tmp_path / "out" / "support-v5"
    assert flywheel(*there, "export", "support-v5", str(folder)).code == 0

    version = desk.operations.show(TASK, 5).version
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "manifest.json", "student.json", "tokenizer.json"}
    assert (folder / "README.md").read_text() == desk.operations.card(TASK, 5)
    manifest = (folder / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == version.student
    for name, file in json.loads(manifest)["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file["sha256"]


def test_export_never_writes_over_what_is_there(
    flywheel: Flywheel, desk: Desk, tmp_path: Path
) -> None:
    there = ("--data-dir", str(desk.folder))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    ended = flywheel(*there, "export", "support-v5", str(folder))
    assert ended.code == ExitCode.REFUSED
    assert "holds something" in ended.err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_export_refuses_what_was_changed_on_disk(
    flywheel: Flywheel, desk: Desk, tmp_path: Path
) -> None:
    version = desk.operations.show(TASK, 5).version
    (desk.artifacts.path("student", version.student) / "student.json").write_text("{}")
    ended = flywheel("--data-dir", str(desk.folder), "export", "5", str(tmp_path / "out"))
    assert ended.code == ExitCode.DATA_DAMAGED
    assert not (tmp_path / "out").exists()


def test_approve_takes_what_waits_and_asks_first(
    flywheel: Flywheel, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    there = ("--data-dir", str(desk.folder))
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    declined = flywheel(*there, "approve")
    assert declined.code == 1
    assert "Gate: better" in declined.out
    assert [v.number for v in desk.operations.waiting()] == [5]

    approved = flywheel(*there, "approve", "--yes")
    assert approved.code == 0
    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert served.number == 5
    nothing = flywheel(*there, "approve", "--yes")
    assert nothing.code == ExitCode.REFUSED
    assert "nothing waits" in nothing.err


def test_what_would_serve_nothing_needs_to_be_asked_for(flywheel: Flywheel, desk: Desk) -> None:
    desk.evaluate(desk.train(), threshold=None)
    there = ("--data-dir", str(desk.folder), "approve", "--yes")
    refused = flywheel(*there)
    assert refused.code == ExitCode.REFUSED
    assert "needs --serves-nothing" in refused.err
    assert "every request still goes to the teacher" in refused.err
    assert flywheel(*there, "--serves-nothing").code == 0
    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert (served.number, served.threshold) == (6, None)


def test_a_target_above_the_ceiling_needs_to_be_asked_for(flywheel: Flywheel, desk: Desk) -> None:
    desk.evaluate(desk.train(), ceiling=BELOW)
    there = ("--data-dir", str(desk.folder), "approve", "--yes")
    refused = flywheel(*there)
    assert refused.code == ExitCode.REFUSED
    assert "needs --above-ceiling" in refused.err
    assert "Asked the same again, the teacher gave the same answer to 88 % of 100 prompts" in (
        " ".join(refused.err.split())
    )
    assert flywheel(*there, "--above-ceiling").code == 0


def test_a_parked_prompt_is_listed_and_settled(flywheel: Flywheel, desk: Desk) -> None:
    desk.park("app-17", "the card was swallowed", LABELS[0], LABELS[1])
    there = ("--data-dir", str(desk.folder), "parked")
    listed = flywheel(*there, "list")
    assert listed.code == 0
    assert "the card was swallowed" in listed.out
    wrong = flywheel(*there, "settle", "app-17", "no label of ours")
    assert wrong.code == ExitCode.REFUSED
    assert flywheel(*there, "settle", "app-17", LABELS[1]).code == 0
    assert "contradicts itself about no prompt" in flywheel(*there, "list").out
    again = flywheel(*there, "settle", "app-17", LABELS[0])
    assert again.code == ExitCode.REFUSED
    assert "does not wait" in again.err


def test_a_failed_gate_cannot_be_approved(flywheel: Flywheel, desk: Desk) -> None:
    ended = flywheel("--data-dir", str(desk.folder), "approve", "support-v4", "--yes")
    assert ended.code == ExitCode.REFUSED
    assert "cannot be approved" in ended.err


def test_reject_and_rollback_want_a_reason(flywheel: Flywheel, desk: Desk) -> None:
    there = ("--data-dir", str(desk.folder))
    assert flywheel(*there, "reject", "5").code == ExitCode.USAGE
    assert flywheel(*there, "reject", "5", "--reason", "no").code == 0
    assert flywheel(*there, "rollback", "--reason", " ", "--yes").code == ExitCode.REFUSED
    back = flywheel(*there, "rollback", "--reason", "complaints", "--yes")
    assert back.out == "support-v1 serves again.\n"
    assert flywheel(*there, "rollback", "v2", "--reason", "x", "--yes").code == ExitCode.REFUSED


def test_steering_and_sorting_out(flywheel: Flywheel, desk: Desk) -> None:
    there = ("--data-dir", str(desk.folder))
    assert flywheel(*there, "pause").code == 0
    assert desk.operations.status().all_paused
    assert flywheel(*there, "resume").code == 0
    assert flywheel(*there, "pause", "lunch").code == ExitCode.REFUSED
    assert flywheel(*there, "train").code == 0
    assert desk.board.take_wish(TASK)
    assert "flywheel.prompts/0/17" in flywheel(*there, "dead-letters", "list").out
    assert flywheel(*there, "dead-letters", "replay", "flywheel.prompts/0/17").code == 0
    assert len(desk.writer.durable) == 1
    key = desk.operations.unknown_outcomes()[0].key
    assert key in flywheel(*there, "unknown", "list").out
    assert flywheel(*there, "unknown", "release", key).code == 0
    assert flywheel(*there, "unknown", "drop", key).code == ExitCode.REFUSED


def test_open_prints_a_link_that_works_once(flywheel: Flywheel, desk: Desk) -> None:
    link = flywheel("--data-dir", str(desk.folder), "open", "--print").out.strip()
    assert "/login?code=" in link


def test_user_text_cannot_drive_the_terminal(flywheel: Flywheel, desk: Desk) -> None:
    desk.dead_letter(40, b"x", "bad \x1b[2J\x07 bytes")
    out = flywheel("--data-dir", str(desk.folder), "dead-letters", "list").out
    assert "\x1b" not in out
    assert "\x07" not in out
