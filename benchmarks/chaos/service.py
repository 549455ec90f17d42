"""The program under chaos: started like a service manager starts it, with failpoints to arm."""

import fcntl
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil

from benchmarks.results import ROOT
from benchmarks.running import Running, free_ports
from service.client import LearnerClient
from service.keys import read_operator_token
from service.supervisor import with_life_line
from storage import failpoints

__all__ = ["ROOT", "Service"]

SETTINGS = """
data_dir = "{data}"

[kafka]
bootstrap_servers = "{broker}"
topic = "chaos"

[ingest]
trusted_producers = {{ {producer} = "{key}" }}

[gateway]
port = {gateway}
threads = 1

[learner]
port = {learner}

[trainer]
threads = 1

[teacher]
base_url = "{teacher}"
model = "scripted-teacher"
terms = "scripted"
terms_allow_training = true
max_concurrency = {concurrency}
max_tokens = 16

[budget]
label_calls = 1000000
label_tokens = 1000000000
escalation_calls = 0

[sampling]
audit_rate = 0.01
held_out_rate = 1.0
learning_rate = 0.01
learning_pi_min = 0.001

[dataset]
held_out_window = 1000

[trigger]
min_labels = {min_labels}
min_interval = "0s"

[gate]
min_groups = 30

[schedule]
relabel = "every 1s"
watch = "every 1s"
evaluate = "every 5s"
retention = "every 30s"

[tasks.{task}]
models = ["{task}"]
target = 0.8
labels = {labels}
instructions = "Say which of the labels fits."
"""


MIN_LABELS = 400  # what a first student needs to be told from its base model


class Service:
    """`flywheel run` in a folder, on two ports of its own, started again when it has died."""

    def __init__(
        self, folder: Path, *, teacher: str, broker: str, task: str, labels: tuple[str, ...],
        producer: str, key: str, concurrency: int,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.data = folder / "data"
        self.config = folder / "flywheel.toml"
        self._log = folder / "flywheel.log"
        self._points = folder / "failpoints"
        (self._points / failpoints.ARMED).mkdir(parents=True)
        self.gateway_port, self.learner_port = free_ports(2)
        filled = SETTINGS.format(
            data=self.data,
            broker=broker,
            producer=producer,
            key=key,
            teacher=teacher,
            gateway=self.gateway_port,
            learner=self.learner_port,
            task=task,
            labels=json.dumps(list(labels)),
            concurrency=concurrency,
            min_labels=MIN_LABELS,
        )
        self.config.write_text(filled)
        self._pids: dict[int, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.died: set[str] = set()  # children, since the supervisor's start

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def learner(self) -> str:
        return f"http://127.0.0.1:{self.learner_port}"

    def client(self) -> LearnerClient:
        return LearnerClient(self.learner, read_operator_token(self.data), "chaos")

    def start(self) -> None:
        """Start the supervisor; returns at once."""
        self.reap()
        self.died.clear()
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "--config", str(self.config), "run"],
                stdin=subprocess.PIPE,
                env=with_life_line() | {failpoints.VARIABLE: str(self._points)},
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=ROOT,
            )
        self._pids[self._process.pid] = "supervisor"

    def wait_until_up(self) -> None:
        assert self._process is not None
        running = Running(process=self._process, config=self.config, data=self.data, log=self._log)
        running.wait_until_up()
        self.note_pids()

    def stop(self) -> int:
        """Drain, as a service manager has it done; the exit code."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.terminate()
        code = self._process.wait(90)
        self._process.stdin.close()
        return code

    def reap(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(5)

    def process(self, name: str) -> psutil.Process:
        if name == "supervisor":
            assert self._process is not None
            return psutil.Process(self._process.pid)
        self.note_pids()
        return psutil.Process(self._pid(name))

    def age(self, name: str) -> float:
        """Seconds since a child's start; 0 where there is none."""
        try:
            return time.time() - psutil.Process(self._pid(name)).create_time()
        except (psutil.Error, OSError, ValueError, KeyError):
            return 0.0

    def note_pids(self) -> None:
        """Remember who is who: a killed process can no longer be asked."""
        for name in ("gateway", "learner"):
            try:
                self._pids[self._pid(name)] = name
            except (OSError, ValueError, KeyError):
                continue

    def kind_of(self, pid: int) -> str:
        """What a process was. One that has died before it said so is known by its last words."""
        self.note_pids()
        if pid in self._pids:
            return self._pids[pid]
        text = self._log.read_bytes()[-20_000:].decode(errors="replace")
        said = re.findall(rf'"child": "(\w+)".*?"pid": {pid}\b|child=(\w+) pid={pid}\b', text)
        return next((a or b for a, b in reversed(said)), "learner")

    def arm(self, point: str, nth: int) -> None:
        temporary = self._points / f"{point}.tmp"
        temporary.write_text(f"SIGKILL {nth}")
        temporary.rename(self._points / failpoints.ARMED / point)

    def disarm(self, point: str) -> None:
        (self._points / failpoints.ARMED / point).unlink(missing_ok=True)

    def fired(self) -> list[tuple[float, int, str]]:
        """Time, process and point of each kill at a failpoint."""
        try:
            lines = (self._points / failpoints.FIRED).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(float(at), int(pid), point) for at, pid, point, _ in map(str.split, lines)]

    def is_free(self) -> bool:
        """Whether no process of a former start holds a port or the data folder."""
        return (
            is_port_free(self.gateway_port)
            and is_port_free(self.learner_port)
            and is_unlocked(self.data / "run" / "learner.lock")
        )

    def ingests_anew(self) -> bool:
        """Whether a learner other than the killed one has committed events."""
        return (metric(self.learner, 'flywheel_records_total{outcome="event"}') or 0) > 0

    def is_behind(self) -> bool:
        """Whether the learner has something left to read, as far as it knows."""
        return metric(self.learner, "flywheel_topic_lag_records") != 0

    def _pid(self, name: str) -> int:
        noted = json.loads((self.data / "run" / f"{name}.json").read_text())
        return int(noted["pid"])


def is_port_free(port: int) -> bool:
    """Whether nobody listens."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def is_unlocked(path: Path) -> bool:
    """Whether no process holds the learner's lock."""
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def metric(learner: str, name: str) -> float | None:
    """What the learner tells Prometheus. Only to know when to go on, never as evidence."""
    try:
        text = httpx2.get(f"{learner}/metrics", timeout=2).text
    except httpx2.HTTPError:
        return None
    found = re.search(rf"^{re.escape(name)} ([0-9.e+]+)", text, re.M)
    return float(found[1]) if found else None
