"""The program and its scripted teacher as processes, for benchmarks and end-to-end tests."""

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from service.client import LearnerClient
from service.keys import read_operator_token
from service.supervisor import with_life_line

START_SECONDS = 90.0
STOP_SECONDS = 60.0
# Below those that systems lend to connections: one of them would take the port of a server that
# is not up yet, or away for a moment.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """For servers that cannot choose their own."""
    found: set[int] = set()
    while len(found) < count:
        port = secrets.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A supervised gateway and learner over one data folder."""

    process: "subprocess.Popen[bytes]"
    config: Path
    data: Path
    log: Path

    @property
    def gateway(self) -> str:
        return self._address("gateway")

    @property
    def learner(self) -> str:
        return self._address("learner")

    @property
    def client(self) -> LearnerClient:
        return LearnerClient(self.learner, read_operator_token(self.data), "test")

    def pid(self, name: str) -> int:
        """Of the gateway or the learner, as it noted itself."""
        return int(json.loads((self.data / "run" / f"{name}.json").read_text())["pid"])

    def wait_until_up(self, seconds: float = START_SECONDS) -> None:
        """Until both answer."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                for address in (self.gateway, self.learner):
                    httpx2.get(f"{address}/healthz", timeout=2).raise_for_status()
                read_operator_token(self.data)
                return
            except (OSError, ValueError, KeyError, httpx2.HTTPError):
                time.sleep(0.1)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise TimeoutError(f"the service is not up\n{tail}")

    def _address(self, name: str) -> str:
        port = json.loads((self.data / "run" / f"{name}.json").read_text())["port"]
        return f"http://127.0.0.1:{port}"


@contextmanager
def scripted_teacher(*options: str) -> Iterator[str]:
    """The base URL of a scripted teacher, started with these options."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service.demo.scripted_teacher", *options, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        port = json.loads(process.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.stdin.close()
        process.stdout.close()


@contextmanager
def running_service(folder: Path, settings: str) -> Iterator[Running]:
    """`flywheel run` with these settings, in `folder`; both ports should be 0."""
    config, log = folder / "flywheel.toml", folder / "flywheel.log"
    config.write_text(f"data_dir = {json.dumps(str(folder / 'data'))}\n{settings}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--config", str(config), "run"],
            stdin=subprocess.PIPE,  # its end tells them that we are gone
            env=with_life_line(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        running = Running(process=process, config=config, data=folder / "data", log=log)
        running.wait_until_up()
        yield running
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.stdin.close()
