"""A data folder that really lived: traffic, bought and given labels, two approved versions.

It is made once a session and copied by whoever harms it. A backup was taken in the middle, while
everything ran. The witnesses are the teacher's billing log and what was put on the topic.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import httpx2

from benchmarks.running import Running, running_service, scripted_teacher
from service.demo.corpus import load_corpus
from service.demo.traffic import Traffic

TASK = load_corpus().task
# Enough for the gate to tell the student from its base model, nearly always.
FIRST, MORE, ASKED = 560, 200, 30
NEW = 0.8  # of what comes later: a matter that the first version never saw
SETTINGS = """
[gateway]
port = 0

[learner]
port = 0

[teacher]
base_url = "{teacher}"
model = "scripted-teacher"
terms = "scripted"
terms_allow_training = true
price_per_million_in = 2.5
price_per_million_out = 10.0

[budget]
label_calls = 100000
label_tokens = 100000000

[sampling]
held_out_rate = 1.0
audit_rate = 0.1
cold_start_labels = 100000

[trigger]
min_labels = 1000000
growth = 1000.0
min_interval = "0s"

[gate]
min_groups = 30
alpha = 0.4
delta = 0.4
max_negative_flips = 1.0
max_calibration_error = 1.0

[schedule]
relabel = "every 1s"
watch = "every 1s"
evaluate = "every 2s"

[tasks.{task}]
models = ["{task}"]
target = 0.7
labels = {labels}
instructions = "Say what the customer wants."
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivedIn:
    """The folder as it was left, and what witnesses know of it."""

    folder: Path
    settings: str
    billing: Path
    backup: Path  # taken after the first approval, before the second
    at_backup: dict[str, Any]  # the status then
    billed_at_backup: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def copy(self, folder: Path) -> Path:
        """A copy of the data folder at `folder`/data, where `running_service` looks for it."""
        shutil.copytree(self.data, folder / "data")
        return folder / "data"

    def config(self, folder: Path) -> Path:
        path = folder / "flywheel.toml"
        path.write_text(f"data_dir = {json.dumps(str(folder / 'data'))}\n{self.settings}")
        return path

    def bills(self) -> list[str]:
        """What the teacher charged for, one hash of the messages a call."""
        lines = self.billing.read_text().splitlines()
        return [json.loads(line)["messages_sha256"] for line in lines]


@contextmanager
def lived_in(folder: Path) -> Iterator[LivedIn]:
    """Live for a while, then stop; the teacher goes on, for those who start a copy."""
    billing, backup = folder / "billing.jsonl", folder / "backup.tar"
    labels = "[" + ", ".join(f'"{label}"' for label in load_corpus().labels) + "]"
    with scripted_teacher("--billing-log", str(billing)) as teacher:
        settings = SETTINGS.format(teacher=teacher, task=TASK, labels=labels)
        with running_service(folder, settings) as running:
            put(running, folder, 0, FIRST)
            train_and_approve(running, FIRST)
            ask(running, FIRST, ASKED)
            wait_for("all events", lambda: events(running) == FIRST + ASKED)
            run_flywheel(running.config, "backup", str(backup))
            before, billed = running.client.get("status"), len(billing.read_text().splitlines())
            put(running, folder, FIRST + ASKED, MORE, new=NEW)
            train_and_approve(running, FIRST + ASKED + MORE)
        yield LivedIn(
            folder=folder,
            settings=settings,
            billing=billing,
            backup=backup,
            at_backup=before,
            billed_at_backup=billed,
        )


def put(running: Running, folder: Path, first: int, count: int, *, new: float = 0.0) -> None:
    """Prompts of an app that answers them itself: what is to be labelled is bought."""
    path, traffic = folder / "log.jsonl", Traffic(5)
    lines = []
    for index in range(first, first + count):
        message = traffic.message(index, new_intent_share=new)
        messages = [{"role": "user", "content": message.text}]
        record = {"schema": "flywheel.prompt/1", "model": TASK, "messages": messages}
        lines.append(json.dumps({**record, "event_id": f"log-{index}", "user": message.user}))
    path.write_text("\n".join(lines))
    run_flywheel(running.config, "import", str(path))


def ask(running: Running, first: int, count: int) -> None:
    """Prompts of an app behind the gateway."""
    traffic = Traffic(6)  # no message of the log again: that would be another's bill
    with httpx2.Client(timeout=30) as client:
        for index in range(first, first + count):
            text = traffic.message(index, new_intent_share=0.0).text
            body = {"model": TASK, "messages": [{"role": "user", "content": text}]}
            client.post(f"{running.gateway}/v1/chat/completions", json=body).raise_for_status()


def train_and_approve(running: Running, count: int) -> None:
    """With all labels there; then wait until the gateway serves what came of it."""
    wait_for("all events", lambda: events(running) == count)
    wait_for("all labels", lambda: not pending(running))
    running.client.post("tasks", TASK, "train")
    waiting = wait_for("a version", lambda: newest_waiting(running))
    number, body = str(waiting["number"]), {"report": waiting["report"], "serves_nothing": True}
    running.client.post("tasks", TASK, "versions", number, "approve", body=body)
    wait_for("the swap", lambda: serving(running) == waiting["name"])


def newest_waiting(running: Running) -> dict[str, Any] | None:
    """The version that waits. One that the gate stopped will not: that is for whoever reads."""
    found: list[dict[str, Any]] = running.client.get("tasks", TASK, "versions")
    if found and found[0]["state"] in ("gate_failed", "insufficient_evidence"):
        raise GateSaidNo(found[0]["sentence"])
    return found[0] if found and found[0]["state"] == "waiting" else None


class GateSaidNo(Exception):
    """Ends the waiting."""


def serving(running: Running) -> str:
    """The version that the gateway answers with."""
    found = httpx2.get(f"{running.gateway}/v1/models", timeout=10).json()
    return str(found["data"][0]["version"])


def events(running: Running) -> int:
    return int(running.client.get("status")["tasks"][0]["figures"]["events_total"])


def pending(running: Running) -> int:
    return int(running.client.get("status")["tasks"][0]["figures"]["pending_samples"])


def run_flywheel(config: Path, *arguments: str, code: int = 0) -> str:
    """The command line in a process of its own; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def wait_for(what: str, found: Callable[[], Any], seconds: float = 480) -> Any:
    deadline = time.monotonic() + seconds
    last = "nothing yet"
    while time.monotonic() < deadline:
        try:
            if result := found():
                return result
        except GateSaidNo:
            raise
        except Exception as error:  # it may be starting
            last = repr(error)
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen in {seconds} s: {last}")


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask a copy of a database that nobody holds."""
    with duckdb.connect(str(database)) as connection:
        return connection.execute(query).fetchall()
