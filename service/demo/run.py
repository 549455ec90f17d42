"""`flywheel demo`: the whole loop on this machine, with nothing but what is installed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from pipelines.errors import ExitCode, FlywheelError, NotRunning, Refused, TimedOut
from service.client import LearnerClient
from service.demo.corpus import Corpus, load_corpus
from service.demo.customers import Customers
from service.demo.screen import Screen
from service.demo.traffic import Traffic
from service.keys import read_operator_token
from service.supervisor import with_life_line

MARKER = ".flywheel-demo"
CONFIG = "flywheel.toml"
LOG = "flywheel.log"
OPERATOR = "demo"
START_SECONDS = 60.0
LOOK_SECONDS = 1.0
TEACHER_MODEL = "scripted-teacher"


def run_demo(
    *,
    approve: bool,
    until_promoted: bool,
    data: Path,
    rate: float,
    seed: int,
    port_gateway: int,
    port_learner: int,
    error_rate: float,
    duration: float | None,
) -> ExitCode:
    """Start teacher, gateway, learner and customers; show what happens until stopped.

    Ends with OK after Ctrl-C or `duration`, or with `until_promoted` when an approved
    student has answered traffic. Raises `FlywheelError` when a part does not start.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    corpus = load_corpus()
    _fresh_folder(data)
    with Demo(data, corpus, seed=seed, rate=rate, error_rate=error_rate) as demo:
        demo.start(port_gateway, port_learner)
        return demo.follow(approve=approve, until_promoted=until_promoted, duration=duration)


class Demo:
    """The processes of one demonstration. Everything ends with it."""

    def __init__(
        self, data: Path, corpus: Corpus, *, seed: int, rate: float, error_rate: float
    ) -> None:
        self._data = data
        self._corpus = corpus
        self._seed = seed
        self._rate = rate
        self._error_rate = error_rate
        self._teacher: subprocess.Popen[bytes] | None = None
        self._service: subprocess.Popen[bytes] | None = None
        self._customers: Customers | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *error: object) -> None:
        if self._customers:
            self._customers.stop()
        for process in (self._service, self._teacher):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
        if self._log:
            self._log.close()

    def start(self, port_gateway: int, port_learner: int) -> None:
        """Teacher, then gateway and learner, then the customers."""
        print("Starting a scripted teacher, a gateway and a learner ...", flush=True)
        self._log = (self._data / LOG).open("wb")
        teacher_port = self._start_teacher()
        config = self._data / CONFIG
        config.write_text(
            _settings(self._data, self._corpus, teacher_port, port_gateway, port_learner)
        )
        self._service = subprocess.Popen(
            [sys.executable, "-m", "service", "--config", str(config), "run"],
            stdin=subprocess.PIPE,  # its end tells them that we are gone
            env=with_life_line(),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.gateway = self._wait_for("gateway", "/healthz")
        self.learner = self._wait_for("learner", "/healthz")
        self.client = LearnerClient(self.learner, read_operator_token(self._data), OPERATOR)
        self._customers = Customers(
            Traffic(self._seed, self._corpus),
            base_url=f"{self.gateway}/v1",
            model=self._corpus.task,
            instructions=self._corpus.instructions,
            rate=self._rate,
        )
        self._customers.start()

    def follow(self, *, approve: bool, until_promoted: bool, duration: float | None) -> ExitCode:
        """Show the loop until the end that was asked for."""
        assert self._customers is not None
        started = time.monotonic()
        seen = self._customers.seen
        approved: set[str] = set()
        with Screen(self._data, self.gateway, self.learner, self.client, self._corpus) as screen:
            try:
                while duration is None or time.monotonic() - started < duration:
                    time.sleep(LOOK_SECONDS)
                    self._still_running()
                    status = self._status()
                    if status is None:
                        screen.say(f"The learner does not answer; see {self._log_path}")
                        continue
                    screen.show(status, seen)
                    if approve:
                        approved |= self._approve(status, screen)
                    if until_promoted and seen.last_version:
                        screen.say(f"{seen.last_version} has answered customers. The loop turns.")
                        return ExitCode.OK
            except KeyboardInterrupt:
                screen.say("Stopping ...")
                return ExitCode.OK
        if until_promoted:
            raise TimedOut(f"no approved student answered within {duration:g} seconds")
        return ExitCode.OK

    def _status(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.client.get("status")
            return found
        except NotRunning:
            return None  # the supervisor is restarting it

    def _approve(self, status: dict[str, Any], screen: Screen) -> set[str]:
        """Do what an operator would do, for those who asked for it."""
        done = set()
        for task in status["tasks"]:
            waiting = task["waiting"]
            if waiting is None:
                continue
            try:
                self.client.post(
                    "tasks",
                    task["task"],
                    "versions",
                    str(waiting["number"]),
                    "approve",
                    body={
                        "report": waiting["report"],
                        "serves_nothing": waiting["threshold"] is None,
                    },
                )
            except FlywheelError as error:
                screen.say(f"Not approved: {error}")
                continue
            screen.say(f"Approved {waiting['name']} (because of --approve).")
            done.add(waiting["name"])
        return done

    def _start_teacher(self) -> int:
        self._teacher = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "service.demo.scripted_teacher",
                f"--error-rate={self._error_rate}",
                f"--seed={self._seed}",
                "--latency-ms=40",
                f"--model={TEACHER_MODEL}",
                "--until-stdin-closes",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self._teacher.stdout is not None
        line = self._teacher.stdout.readline()
        if not line:
            raise NotRunning(f"the scripted teacher did not start; see {self._data / LOG}")
        return int(json.loads(line)["port"])

    def _wait_for(self, name: str, path: str) -> str:
        """The address of a started part, from the note it leaves in the data folder."""
        import urllib.error
        import urllib.request

        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self._still_running()
            try:
                noted = json.loads((self._data / "run" / f"{name}.json").read_text())
                url = f"http://127.0.0.1:{noted['port']}"
                with urllib.request.urlopen(url + path, timeout=2):
                    return url
            except (OSError, ValueError, KeyError, urllib.error.URLError):
                time.sleep(0.1)
        raise TimedOut(f"the {name} did not start within {START_SECONDS:g} s; see {self._log_path}")

    @property
    def _log_path(self) -> Path:
        return self._data / LOG

    def _still_running(self) -> None:
        """A part that ended takes its message with it to the person who waits."""
        if self._service is None or self._service.poll() is None:
            return
        tail = self._log_path.read_text(errors="replace").splitlines()
        said = next((line for line in reversed(tail) if line.startswith("flywheel: ")), "")
        error = Refused(
            said.removeprefix("flywheel: ") or f"the service ended; see {self._log_path}"
        )
        error.exit_code = ExitCode(self._service.returncode or ExitCode.FAILURE)
        raise error


def _fresh_folder(data: Path) -> None:
    """Each demonstration starts from nothing; a folder that is not a demo's is left alone."""
    if data.exists() and any(data.iterdir()):
        if not (data / MARKER).exists():
            raise Refused(
                f"{data} is not empty and not from an earlier demo; give another with --data"
            )
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)
    (data / MARKER).write_text(
        "Made by `flywheel demo`, which empties this folder at each start.\n"
    )


def _settings(data: Path, corpus: Corpus, teacher: int, gateway: int, learner: int) -> str:
    """The settings of the demonstration, as a file that can be read and changed."""
    labels = ", ".join(json.dumps(label) for label in corpus.labels)
    return f"""\
# Written by `flywheel demo`. A production file differs in kafka, teacher and tasks.
data_dir = {json.dumps(str(data))}

[gateway]
port = {gateway}

[learner]
port = {learner}

[teacher]
base_url = "http://127.0.0.1:{teacher}/v1"
model = "{TEACHER_MODEL}"
terms = "scripted: answers from a file, no terms"
terms_allow_training = true
price_per_million_in = 2.5
price_per_million_out = 10.0

# The teacher costs nothing here, so the loop may learn as fast as it can.
[budget]
label_calls = 200000
label_tokens = 1000000000
label_money = 1000.0
escalation_calls = 200000
escalation_money = 1000.0

[sampling]
audit_rate = 0.05
held_out_rate = 1.0

[dataset]
held_out_window = 700

[trigger]
min_labels = 1800
growth = 3.0
min_new_labels = 150
min_interval = "20s"

[gate]
min_groups = 300

[schedule]
relabel = "every 2s"
watch = "every 2s"
evaluate = "every 10s"

[tasks.{corpus.task}]
models = ["{corpus.task}"]
target = 0.97
labels = [{labels}]
instructions = {json.dumps(corpus.instructions)}
"""
