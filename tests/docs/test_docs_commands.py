"""Every command that a page shows in a block is executed as it stands there."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from console_server import TOKEN, seed, serve
from gateway_rig import RunningGateway, Teacher, serving, settings_for
from log_samples import BATCH_INPUT, BATCH_OUTPUT, LITELLM, REQUEST
from operating import Desk, open_desk
from test_docs import EXAMPLE, ROOT, fences

# Programs that are started and stopped, and where they say that they are ready.
SERVING = {"run": ("gateway", "learner"), "gateway": ("gateway",), "learner": ("learner",)}
START_SECONDS = 60
# What changes nothing but the folder of the test. Everything else is named below, or refused.
HARMLESS = {"cp", "curl", "du", "export", "flywheel"}
# What is executed by another test, under the name of its file, or is checked there only.
ELSEWHERE = {
    "make run": "tests/rigs/demo_fixture.py",  # the same verb
    "make test": "tests/docs/test_docs_commands.py",
    "make core": "tests/deploy/test_setup.py",
    "make setup": "tests/deploy/test_setup.py",
    "make check": "tests/structure/test_check.py",
    "make docs": "tests/docs/test_docs.py",  # that what it makes is what is committed
    "make kafka": "tests/rigs/kafka_broker.py",  # the same file of ours
    "make bench": "tests/benchmarks/test_bench_speed.py",
    "make chaos": "tests/faults/test_chaos.py",
    "make screenshots": "tests/operator/test_browser.py",  # the same pages
    "flywheel recipes": "tests/core/test_recipes.py",  # times a batch of each recipe: minutes
    "flywheel backup": "tests/care/test_backup.py",  # these want a real learner's data folder
    "flywheel restore": "tests/care/test_backup.py",
    "flywheel --data-dir /srv/flywheel restore": "tests/care/test_backup.py",
    "flywheel rebuild": "tests/care/test_rebuild.py",
    # There is no Docker engine, cluster or systemd here: their files are checked.
    "docker": "tests/deploy/test_deploy_compose.py",
    "curl -s http://127.0.0.1:8080": "tests/deploy/test_deploy_example_app.py",
    "helm": "tests/deploy/test_deploy_helm.py",
    "kubectl": "tests/deploy/test_deploy_helm.py",
    **dict.fromkeys(
        ("cd", "git", "install", "journalctl", "sudo", "systemctl", "useradd"),
        "tests/deploy/test_deploy_systemd.py",
    ),
}
# A page shows them beside each other, and only one of them can be done.
DECIDING = ("approve", "reject", "rollback", "unknown release", "unknown drop")
# They end so where something is missing, and the pages say that they may.
MAY_END_WITH = {"check": (0, 10), "doctor": (0, 22)}
FILES = {
    "prompts.jsonl": '{"text": "where is my parcel", "model": "support-classifier"}\n',
    "lost-records.jsonl": '{"text": "where is my parcel", "model": "support-classifier"}\n',
    "log.csv": "text,user\nwhere is my parcel,anna\n",
    "exported.csv": "question;output;who;asked_at;region\n"
    'where is my parcel;"{""content"": ""delivery""}";anna;2026-01-02T03:04:05Z;eu\n',
    "litellm.jsonl": json.dumps({**LITELLM, "metadata": {"customer": "anna"}}) + "\n",
    "batch_input.jsonl": json.dumps(
        {**BATCH_INPUT, "body": {**REQUEST, "model": "support-classifier"}}
    )
    + "\n",
    "batch_output.jsonl": json.dumps(BATCH_OUTPUT) + "\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder in which a reader's commands work: our program, settings, a learner that answers."""

    folder: Path
    environment: dict[str, str]
    desk: Desk


def lines_of(block: str) -> list[str]:
    """The command lines of a block, with continued lines joined and without comments."""
    joined = block.replace("\\\n", " ")
    kept = [
        line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return [re.sub(r"\s+# .*$", "", line).strip() for line in kept]


def blocks() -> list[tuple[str, tuple[str, ...]]]:
    """The blocks with their pages; a line that an earlier block has is left out."""
    found, seen = [], set()
    for page, text in fences("sh"):
        lines = [line for line in lines_of(text) if line.removeprefix(".venv/bin/") not in seen]
        seen |= {line.removeprefix(".venv/bin/") for line in lines}
        if lines:
            found.append((page, tuple(lines)))
    return found


BLOCKS = [
    pytest.param(lines, id=f"{page.removeprefix('docs/')}: {lines[0][:40]}")
    for page, lines in blocks()
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """For what is asked with curl."""
    teacher = Teacher()
    with serving(teacher.app()) as port:
        teacher.port = port
        task = {"models": ["support-desk"], "labels": ["refund", "delivery", "invoice"]}
        settings = settings_for(
            tmp_path_factory.mktemp("gateway"), teacher, tasks={"support": task}
        )
        running = RunningGateway(settings)
        yield running
        running.stop()


@contextmanager
def open_place(folder: Path) -> Iterator[Place]:
    """A new one: what was decided in another is not decided here."""
    with open_desk(folder / "data") as desk:
        seed(desk)
        desk.operations.pause("ingest", operator="ada")  # the pages say what to do then
        (desk.folder / "secrets" / "operator.token").write_text(TOKEN)
        with serve(desk) as url:
            (desk.folder / "run").mkdir()
            noted = {"port": int(url.rsplit(":", 1)[1]), "pid": os.getpid()}
            (desk.folder / "run" / "learner.json").write_text(json.dumps(noted))
            yield Place(folder=folder, environment=environment(folder), desk=desk)


def environment(folder: Path) -> dict[str, str]:
    """As a reader's shell, with our program on the path and nothing that opens a window."""
    programs = folder / "bin"
    programs.mkdir()
    program = programs / "flywheel"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m service "$@"\n')
    program.chmod(0o755)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(programs)
    (folder / "deploy").symlink_to(ROOT / "deploy")
    (folder / "demo-data").mkdir()
    text = EXAMPLE.read_text()
    (folder / "flywheel.example.toml").write_text(text)
    text = text.replace('# data_dir = "flywheel-data"', 'data_dir = "data"')
    text = text.replace("terms_allow_training = false", "terms_allow_training = true")
    (folder / "flywheel.toml").write_text(text)
    (folder / "demo-data" / "flywheel.toml").write_text(text)
    (folder / "flywheel-data").mkdir()
    (folder / "flywheel-data" / "empty").touch()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BROWSER": "true",
        "FLYWHEEL_DATA_DIR": str(folder / "data"),
    }


def is_elsewhere(line: str) -> bool:
    return any(re.match(rf"(\.venv/bin/)?{re.escape(start)}\b", line) for start in ELSEWHERE)


def is_harmless(line: str) -> bool:
    return Path(shlex.split(line)[0]).name in HARMLESS


def serving_verb(line: str) -> str | None:
    words = shlex.split(line, comments=True)
    if Path(words[0]).name == "flywheel" and len(words) > 1 and words[1] in SERVING:
        return words[1]
    return None


def test_what_is_executed_elsewhere_is() -> None:
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("lines", BLOCKS)
def test_a_block_of_commands_does_what_the_page_says(
    lines: tuple[str, ...], tmp_path: Path, gateway: RunningGateway
) -> None:
    here = [line for line in lines if not is_elsewhere(line)]
    assert [line for line in here if not is_harmless(line)] == [], "say where it is executed"
    if not here:
        pytest.skip(f"executed elsewhere: {lines[0]}")
    for at, script in enumerate(scripts(here)):
        folder = tmp_path / str(at)
        folder.mkdir()
        with open_place(folder) as place:
            if verb := serving_verb(script[0]):
                start_and_stop(script[0], verb, place)
            else:
                run_script([filled_in(line, place, gateway) for line in script], place)


def scripts(lines: list[str]) -> Iterator[list[str]]:
    """A block in parts: what serves stands alone, and of several decisions each begins anew."""
    part: list[str] = []
    for line in lines:
        alone = serving_verb(line) or re.search(rf"flywheel ({'|'.join(DECIDING)})\b", line)
        if alone and part:
            yield part
            part = []
        part.append(line)
        if alone:
            yield part
            part = []
    if part:
        yield part


def filled_in(line: str, place: Place, gateway: RunningGateway) -> str:
    """What the page cannot know: a key, an id, a port."""
    if re.search(r"\bKEY\b", line):
        line = re.sub(r"\bKEY\b", place.desk.operations.unknown_outcomes()[0].key, line)
    if "chatcmpl-…" in line:
        line = line.replace("chatcmpl-…", answered(gateway))
    line = line.replace("http://127.0.0.1:8700", gateway.url)
    verb = next((verb for verb in MAY_END_WITH if re.search(rf"flywheel {verb}\b", line)), None)
    if verb:
        allowed = " || ".join(f"[ $ended = {code} ]" for code in MAY_END_WITH[verb])
        return f"ended=0; {line} || ended=$?; {allowed}"
    return line


def answered(gateway: RunningGateway) -> str:
    """The id of an answer that the gateway remembers."""
    question = {"model": "support-desk", "messages": [{"role": "user", "content": "a refund"}]}
    reply = httpx2.post(f"{gateway.url}/v1/chat/completions", json=question, timeout=30)
    return str(reply.json()["id"])


def run_script(script: list[str], place: Place) -> None:
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(script)],
        cwd=place.folder,
        env=place.environment,
        input="y\n" * 5,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert '"error"' not in done.stdout, done.stdout  # what curl was told


def start_and_stop(line: str, verb: str, place: Place) -> None:
    """It says that it is ready, and the first signal ends it with 0."""
    data = place.folder / "served"
    ports = ("GATEWAY", "LEARNER")
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=place.folder,
        env={
            **place.environment,
            "FLYWHEEL_DATA_DIR": str(data),
            **{f"FLYWHEEL_{name}__PORT": "0" for name in ports},
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        notes = [data / "run" / f"{name}.json" for name in SERVING[verb]]
        deadline = time.monotonic() + START_SECONDS
        while not all(note.exists() for note in notes):
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline, f"{line} is not ready"
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=START_SECONDS)
        assert process.returncode == 0, output
    finally:
        process.kill()
        process.communicate()
