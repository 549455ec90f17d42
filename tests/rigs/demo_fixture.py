"""One run of `flywheel demo --approve`, for all tests that look at the running program."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.client import LearnerClient
from service.keys import read_operator_token

START_SECONDS = 90
STOP_SECONDS = 90
# On two free cores an approved student answers after about 75 seconds.
PROMOTED_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDemo:
    """Where a running demo is found."""

    data: Path
    gateway_port: int
    learner_port: int
    process: "subprocess.Popen[bytes]"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def learner_url(self) -> str:
        return f"http://127.0.0.1:{self.learner_port}"

    @property
    def operator_token(self) -> str:
        return read_operator_token(self.data)

    @property
    def client(self) -> LearnerClient:
        return LearnerClient(self.learner_url, self.operator_token, "test")

    def wait_until_promoted(self, seconds: float = PROMOTED_SECONDS) -> str:
        """The champion's name, once the gateway serves it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{self.gateway_url}/v1/models", timeout=30) as answer:
                version: str = json.load(answer)["data"][0]["version"]
            if version != "teacher":
                return version
            self._still_running()
            time.sleep(1)
        raise AssertionError(f"no student was approved in {seconds:g} s\n{self.tail()}")

    def tail(self) -> str:
        """The end of what the demo and its service have said."""
        logs = (self.data / "flywheel.log", self.data.parent / "demo.out")
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}"
            for log in logs
            if log.exists()
        )

    def _still_running(self) -> None:
        assert self.process.poll() is None, f"the demo has ended\n{self.tail()}"


def running_demo_in(folder: Path) -> Iterator[RunningDemo]:
    """Start a demo that approves what waits, on free ports; stop all of it afterwards."""
    data = folder / "demo"
    with (folder / "demo.out").open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "service", "demo", "--approve", f"--data={data}"),
                *("--port-gateway=0", "--port-learner=0"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield RunningDemo(
            data=data,
            gateway_port=_port(process, data, "gateway"),
            learner_port=_port(process, data, "learner"),
            process=process,
        )
    finally:
        _stop(process, data)


def _port(process: "subprocess.Popen[bytes]", data: Path, name: str) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, ValueError):
            port = int(json.loads((data / "run" / f"{name}.json").read_text())["port"])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                return port
        time.sleep(0.2)
    said = (data.parent / "demo.out").read_text(errors="replace")
    raise AssertionError(f"the demo's {name} did not start in {START_SECONDS} s\n{said[-3000:]}")


def _stop(process: "subprocess.Popen[bytes]", data: Path) -> None:
    """As Ctrl-C does, so that the demo ends its children itself."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for name in ("gateway", "learner"):
            with suppress(OSError, ValueError, KeyError):
                pid = int(json.loads((data / "run" / f"{name}.json").read_text())["pid"])
                os.kill(pid, signal.SIGKILL)
