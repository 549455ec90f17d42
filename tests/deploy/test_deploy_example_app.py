"""The example app is an ordinary one: sixty lines, the plain client, and one line for flywheel."""

import ast
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy_files import DEPLOY
from gateway_rig import RunningGateway, Teacher, serving, settings_for, shared_students

from service.demo.corpus import load_corpus

FOLDER = DEPLOY / "example-app"
APP = FOLDER / "app.py"


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    teacher = Teacher()
    with serving(teacher.app()) as teacher.port:
        yield teacher


@contextmanager
def desk(model_url: str) -> Iterator[str]:
    """The app, unmodified, in a process of its own; where it takes messages."""
    environment = {
        "PATH": os.environ["PATH"],
        "OPENAI_API_KEY": "an app's key",
        "MODEL": "desk",
        "MODEL_URL": model_url,
        "HOST": "127.0.0.1",
        "PORT": "0",
    }
    process = subprocess.Popen(
        [sys.executable, str(APP)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def ask(url: str, message: str) -> dict[str, str]:
    request = urllib.request.Request(f"{url}/messages", message.encode(), {"x-user": "ada"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, str] = json.load(answer)
    return found


def test_it_is_short_and_needs_nothing_but_the_openai_client() -> None:
    source = APP.read_text()
    assert len(source.splitlines()) <= 60
    imported = {
        (node.module or "").split(".")[0]
        if isinstance(node, ast.ImportFrom)
        else node.names[0].name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"openai"}


def test_one_line_had_to_change() -> None:
    tree = ast.parse(APP.read_text())
    made = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "OpenAI"
    ]
    (client,) = made
    assert [keyword.arg for keyword in client.keywords] == ["base_url"]
    assert client.lineno == client.end_lineno
    assert "http://127.0.0.1:8700/v1" in ast.unparse(client)


def test_it_runs_beside_a_real_gateway(tmp_path: Path, teacher: Teacher) -> None:
    gateway = RunningGateway(settings_for(tmp_path, teacher))
    try:
        with desk(f"{gateway.url}/v1") as url:
            teacher.answer = "invoice"
            assert ask(url, "send me the invoice")["queue"] == "invoice"
            # A student is approved, and answers from now on; the app notices nothing.
            gateway.serve(shared_students().publish(tmp_path, 1))
            asked = len(teacher.requests)
            answered = ask(url, "where is my parcel")
            assert answered["queue"] == "delivery"
            assert len(teacher.requests) == asked
            assert answered["event"]
    finally:
        gateway.stop()
    headers = [headers for headers, _ in teacher.requests]
    assert not any("an app's key" in str(sent) for sent in headers)


def test_without_a_gateway_it_still_serves(tmp_path: Path) -> None:
    with desk("http://127.0.0.1:9/v1") as url:
        assert ask(url, "where is my parcel")["queue"] == "by_hand"
        with urllib.request.urlopen(url, timeout=30) as alive:
            assert alive.status == 200


def test_its_prompt_and_its_customers_are_those_of_the_demonstration() -> None:
    assert (FOLDER / "prompt.txt").read_text() == load_corpus().instructions
