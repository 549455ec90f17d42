"""The Prometheus that the tests ask: Debian's, started on a free port and stopped afterwards."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.running import free_ports

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
START_SECONDS = 60
STOP_SECONDS = 20


def program(name: str, package: str = "prometheus") -> str:
    """The path of a program of Prometheus; skips where it is missing, but fails on CI."""
    for known in (name, f"prometheus-{name}"):  # as Debian calls some
        if found := shutil.which(known):
            return found
    sentence = f"{name} not found. It comes with `apt-get install {package}`."
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


class PrometheusServer:
    """A running Prometheus, through its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query; its error is an AssertionError."""
        result: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return result

    def query_range(self, expr: str, *, seconds: float, step: float) -> list[dict[str, Any]]:
        """The series of a range query over the last `seconds`."""
        now = time.time()
        window = {"start": f"{now - seconds:.3f}", "end": f"{now:.3f}", "step": f"{step:g}"}
        result: list[dict[str, Any]] = self.get("query_range", query=expr, **window)["result"]
        return result

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an API call."""
        address = f"{self.url}/api/v1/{path}"
        if parameters:
            address += "?" + urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise AssertionError(f"{parameters or path}: {said}") from None


@contextmanager
def running_prometheus(
    folder: Path,
    targets: Mapping[str, str],
    interval: str = "1s",
    *,
    rules: Path = DEPLOY / "alerts.yml",
    alertmanager: str | None = None,
) -> Iterator[PrometheusServer]:
    """Our shipped configuration, with these targets by job and a shorter interval."""
    config = folder / "prometheus.yml"
    shipped = _configuration(targets, interval, rules)
    if alertmanager is not None:
        where = {"static_configs": [{"targets": [alertmanager]}]}
        shipped["alerting"] = {"alertmanagers": [where]}
    config.write_text(yaml.safe_dump(shipped))
    (port,) = free_ports(1)
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus-data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--query.lookback-delta=1m",
    ]
    url = f"http://127.0.0.1:{port}"
    with running(command, folder / "prometheus.out", f"{url}/-/ready"):
        yield PrometheusServer(url)


@contextmanager
def running_alertmanager(folder: Path, config: Path) -> Iterator[str]:
    """A real Alertmanager with this configuration; where it listens, as host:port."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    command = [
        program("alertmanager", "prometheus-alertmanager"),
        f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager-data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with running(command, folder / "alertmanager.out", f"http://{address}/-/ready"):
        yield address


@contextmanager
def running(command: list[str], output: Path, ready: str) -> Iterator[None]:
    """A server from when it is ready until it was stopped."""
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_ready(ready, process, output)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configuration(targets: Mapping[str, str], interval: str, rules: Path) -> dict[str, Any]:
    shipped: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    assert shipped["rule_files"] == ["alerts.yml"]
    shipped["rule_files"] = [str(rules)]
    for scrape in shipped["scrape_configs"]:
        scrape["static_configs"] = [{"targets": [targets[scrape["job_name"]]]}]
    return shipped


def _wait_until_ready(ready: str, process: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(ready, timeout=2):
            return
        time.sleep(0.1)
    raise AssertionError(
        f"{output.stem} did not start:\n{output.read_text(errors='replace')[-3000:]}"
    )
