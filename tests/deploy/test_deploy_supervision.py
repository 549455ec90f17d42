"""Under systemd or in a container: ready when it answers, alive while it does, not ended early."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipelines.errors import SettingsError
from service.host.notify_systemd import ServiceManager
from service.host.probe import answers
from service.host.probe import main as probe
from service.settings import load_settings

SETTINGS = """
data_dir = "{data}"
gateway = {{ port = 0, threads = 1, drain_timeout = "5s" }}
learner = {{ port = 0, drain_timeout = "5s" }}

[tasks.support]
models = ["desk"]
labels = ["refund", "delivery"]
"""
WATCHDOG_SECONDS = 2.0


class Listener:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def next(self, seconds: float = 60.0) -> list[str] | None:
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(4096).decode().splitlines()
        except TimeoutError:
            return None

    def drained(self, quiet_seconds: float) -> bool:
        """Whether nobody says anything for so long, once what was sent already is read."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.next(quiet_seconds) is None:
                return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    found = Listener(tmp_path / "notify")
    yield found
    found.close()


@contextmanager
def running(
    folder: Path, *verb: str, settings: str = SETTINGS, more: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    config = folder / "flywheel.toml"
    config.write_text(settings.format(data=folder / "data"))
    with (folder / "out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--config", str(config), *verb],
            stdout=output,
            stderr=output,
            env={**os.environ, **(more or {})},
        )
        try:
            yield process
        finally:
            process.kill()  # the children end with it
            process.wait()


def gateway_of(process: "subprocess.Popen[bytes]") -> psutil.Process:
    (found,) = (
        child for child in psutil.Process(process.pid).children() if "gateway" in child.cmdline()
    )
    return found


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_systemd_hears_ready_alive_and_stopping(tmp_path: Path, listener: Listener) -> None:
    told = {
        "NOTIFY_SOCKET": str(listener.path),
        "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6)),
    }
    data = tmp_path / "data"
    with running(tmp_path, "run", more=told) as process:
        assert (listener.next() or [""])[0] == "READY=1"
        assert answers(data, "gateway")
        assert listener.next() == ["WATCHDOG=1"]
        gateway = gateway_of(process)
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(gateway.environ())

        gateway.suspend()  # alive, and answers nobody: what a watchdog is for
        try:
            assert listener.drained(quiet_seconds=3 * WATCHDOG_SECONDS)
        finally:
            gateway.resume()
        assert listener.next() == ["WATCHDOG=1"]

        gateway.kill()  # dead: restarted by us, and no reason to end the learner as well
        eventually(lambda: answers(data, "gateway"))
        assert listener.next() == ["WATCHDOG=1"]

        process.send_signal(signal.SIGTERM)
        while (heard := listener.next()) == ["WATCHDOG=1"]:
            pass
        assert heard == ["STOPPING=1"]
        assert process.wait(60) == 0


def test_an_abstract_socket_of_systemd_is_reached() -> None:
    name = f"flywheel-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(10)
        ServiceManager(address="@" + name).tell("READY=1", "STATUS=up")
        assert receiver.recv(100) == b"READY=1\nSTATUS=up"


def test_nobody_listening_is_no_reason_to_fail(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000000"}
    manager = ServiceManager.of(environment)
    assert environment == {}
    assert manager.watchdog_seconds == 1
    manager.tell("READY=1")
    ServiceManager.of({}).tell("READY=1")


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert ServiceManager.of(environment).watchdog_seconds is None


def test_a_sidecars_container_outlives_wrong_settings_and_a_killed_gateway(
    tmp_path: Path,
) -> None:
    """Kubernetes takes a pod out of service when any of its containers ends."""
    data = tmp_path / "data"
    wrong = SETTINGS.replace("threads", "treads")
    with running(tmp_path, "gateway", "--keep-running", settings=wrong) as process:
        eventually(lambda: "child_died" in (tmp_path / "out").read_text())
        assert "there is no such setting" in (tmp_path / "out").read_text()
        assert process.poll() is None

        (tmp_path / "flywheel.toml").write_text(SETTINGS.format(data=data))
        eventually(lambda: answers(data, "gateway"))

        first = gateway_of(process)
        first.kill()
        first.wait(20)
        eventually(lambda: answers(data, "gateway"))
        assert process.poll() is None

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not answers(data, "gateway")


def test_a_gateway_alone_is_ready_when_a_probe_of_it_passes(
    tmp_path: Path, listener: Listener
) -> None:
    data = tmp_path / "data"
    at = ["--data-dir", str(data)]
    assert probe(at) == 1
    told = {"NOTIFY_SOCKET": str(listener.path)}
    with running(tmp_path, "gateway", "--keep-running", more=told):
        assert (listener.next() or [""])[0] == "READY=1"
        assert probe(["gateway", *at]) == 0
        assert probe(at) == 0
        assert probe(["learner", *at]) == 1
    eventually(lambda: probe(at) == 1)


def test_a_probe_that_lets_pass_cannot_block_a_pod_for_ever(tmp_path: Path) -> None:
    began = time.monotonic()
    wait = ["--data-dir", str(tmp_path), "--within", "0.5"]
    assert probe(["gateway", *wait]) == 1
    assert probe(["gateway", *wait, "--let-pass"]) == 0
    assert time.monotonic() - began >= 1


def test_a_probe_needs_neither_settings_nor_libraries(tmp_path: Path) -> None:
    """It runs every few seconds, in a container that may have no other client."""
    code = "import sys, service.host.probe; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"pydantic", "httpx2", "structlog", "typer", "openai"}


def test_what_kubernetes_says_of_services_is_not_taken_for_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It puts these into every container beside a Service that is called flywheel-learner."""
    monkeypatch.chdir(tmp_path)
    at = "10.96.0.7"
    for name, value in {
        "FLYWHEEL_LEARNER_SERVICE_HOST": at,
        "FLYWHEEL_LEARNER_SERVICE_PORT": "8701",
        "FLYWHEEL_LEARNER_SERVICE_PORT_HTTP": "8701",
        "FLYWHEEL_LEARNER_PORT": f"tcp://{at}:8701",
        "FLYWHEEL_LEARNER_PORT_8701_TCP": f"tcp://{at}:8701",
        "FLYWHEEL_LEARNER_PORT_8701_TCP_PROTO": "tcp",
        "FLYWHEEL_LEARNER_PORT_8701_TCP_PORT": "8701",
        "FLYWHEEL_LEARNER_PORT_8701_TCP_ADDR": at,
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings().learner.port == 8701
    monkeypatch.setenv("FLYWHEEL_LEARNER_PORT", "8702")  # a person's, with a line too few
    with pytest.raises(SettingsError, match="FLYWHEEL_LEARNER_PORT is not a setting"):
        load_settings()


def test_secrets_are_read_as_kubernetes_mounts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links to a folder that is exchanged as a whole."""
    monkeypatch.chdir(tmp_path)
    real = tmp_path / "..2026_01_01"
    real.mkdir()
    (tmp_path / "..data").symlink_to(real.name)
    for name, value in {"gateway__keys": '["a", "b"]', "teacher__api_key": "c\n"}.items():
        (real / name).write_text(value)
        (tmp_path / name).symlink_to(f"..data/{name}")
    monkeypatch.setenv("FLYWHEEL_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    assert [key.get_secret_value() for key in settings.gateway.keys] == ["a", "b"]
    assert settings.teacher.api_key.get_secret_value() == "c"
