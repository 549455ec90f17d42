"""The compose example: valid, closed to the outside, and its parts are this repository's."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_files import DEPLOY, ROOT, program, said

from benchmarks.running import free_ports
from pipelines.errors import FlywheelError
from service.care.check import find_problems
from service.client import LearnerClient
from service.demo.corpus import load_corpus
from service.demo.run import TEACHER_MODEL
from service.keys import read_operator_token
from service.settings import load_settings

FILE = DEPLOY / "compose.yaml"
SETTINGS = DEPLOY / "compose" / "flywheel.toml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
START_SECONDS = 90.0


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """As docker-compose understands them: variables replaced, anchors merged."""
    compose = program("docker-compose", "docker-compose")
    found = yaml.safe_load(said(compose, "-f", FILE, "config"))
    services: dict[str, dict[str, Any]] = found["services"]
    return services


def test_images_have_versions_and_ports_are_on_loopback(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+", service["image"]), f"{name} has no version"
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name}: {port}"
    published = {str(port) for one in services.values() for port in one.get("ports", [])}
    assert not any(":8700" in port for port in published)  # the gateway has no keys here


def test_everything_that_is_mounted_is_there(services: dict[str, dict[str, Any]]) -> None:
    named = yaml.safe_load(FILE.read_text())["volumes"]
    for name, service in services.items():
        for mount in service.get("volumes", []):
            source = str(mount).split(":")[0]
            assert Path(source).exists() or source in named, f"{name}: {mount}"


def test_our_containers_may_do_next_to_nothing(services: dict[str, dict[str, Any]]) -> None:
    ours = [name for name, one in services.items() if one["image"].startswith("flywheel:")]
    assert sorted(ours) == ["customers", "example-app", "flywheel", "teacher"]
    for name in ours:
        service = services[name]
        assert service["image"] == f"flywheel:{VERSION}-slim"
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        build = service["build"]
        assert Path(build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] == "slim"


def test_no_secret_is_in_the_file(services: dict[str, dict[str, Any]]) -> None:
    assert services["flywheel"]["environment"]["FLYWHEEL_TEACHER__API_KEY"] == ""
    assert "TEACHER_API_KEY:-}" in FILE.read_text()


def test_the_broker_is_the_one_that_the_tests_run(services: dict[str, dict[str, Any]]) -> None:
    pom = (DEPLOY / "kafka" / "pom.xml").read_text()
    version = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", pom)
    assert version
    assert services["kafka"]["image"] == f"apache/kafka:{version[1]}"
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INTERNAL://{load_settings(SETTINGS).kafka.bootstrap_servers}" in advertised


def test_settings_miss_nothing_and_fit_the_demonstrations_desk() -> None:
    settings = load_settings(SETTINGS)
    assert [one for one in find_problems(settings) if one.level == "error"] == []
    corpus = load_corpus()
    (name,) = settings.tasks
    assert settings.tasks[name].models == [corpus.task]
    assert set(settings.tasks[name].labels) == set(corpus.labels)
    assert settings.teacher.model == TEACHER_MODEL
    # Whatever is labelled by a script must say so for ever.
    assert "scripted" in settings.teacher.terms


def test_a_teacher_of_yours_is_one_variable_away(tmp_path: Path) -> None:
    own = tmp_path / "flywheel.toml"
    own.touch()
    compose = program("docker-compose", "docker-compose")
    environment = {**os.environ, "FLYWHEEL_TOML": str(own), "TEACHER_API_KEY": "a key"}
    found = yaml.safe_load(said(compose, "-f", FILE, "config", env=environment))["services"]
    assert f"{own}:/etc/flywheel/flywheel.toml:ro" in found["flywheel"]["volumes"]
    assert found["flywheel"]["environment"]["FLYWHEEL_TEACHER__API_KEY"] == "a key"


@pytest.mark.prometheus
def test_prometheus_and_alertmanager_accept_their_files(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    config = tmp_path / "prometheus.yml"
    config.write_text((DEPLOY / "compose" / "prometheus.yml").read_text())
    (tmp_path / "rules").symlink_to(DEPLOY / "prometheus")  # as it is mounted
    said(promtool, "check", "config", config)
    amtool = program("amtool", "prometheus-alertmanager")
    said(amtool, "check-config", DEPLOY / "compose" / "alertmanager.yml")


def test_it_scrapes_what_the_alerts_know() -> None:
    def jobs(path: Path) -> dict[str, Any]:
        found = yaml.safe_load(path.read_text())["scrape_configs"]
        return {one["job_name"]: one["static_configs"] for one in found}

    assert jobs(DEPLOY / "compose" / "prometheus.yml") == jobs(
        DEPLOY / "prometheus" / "prometheus.yml"
    )


def test_grafana_finds_its_provisioning(services: dict[str, dict[str, Any]]) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    inside = {str(mount).split(":")[1] for mount in services["grafana"]["volumes"]}
    for path in (provisioning / "dashboards").glob("*.yaml"):
        for provider in yaml.safe_load(path.read_text())["providers"]:
            assert any(provider["options"]["path"].startswith(one) for one in inside)
    for path in (provisioning / "datasources").glob("*.yaml"):
        for source in yaml.safe_load(path.read_text())["datasources"]:
            # Grafana and Prometheus share the app's network.
            assert source["url"] in ("http://localhost:9090", "http://127.0.0.1:9090")
    assert services["grafana"]["network_mode"] == services["prometheus"]["network_mode"]


@contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    """A container's command as a process of this host, in the image's environment."""
    words = [str(word) for word in command if word not in ("tini", "--")]
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    elif words[0] == "flywheel":
        words = [sys.executable, "-m", "service", *words[1:]]
    inside = [
        word.replace("/opt/flywheel/example-app", str(DEPLOY / "example-app")) for word in words
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            inside,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def eventually(what: str, condition: Callable[[], Any], logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, FlywheelError):
            if condition():
                return
        time.sleep(0.2)
    tails = "\n".join(log.read_text(errors="replace")[-1500:] for log in logs.glob("*.log"))
    raise AssertionError(f"{what} did not happen in time\n{tails}")


def test_its_commands_turn_the_loop(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """All containers of ours as processes, with other ports, and the embedded topic for Kafka."""
    desk, teacher, gateway, learner = free_ports(4)
    data = tmp_path / "data"
    settings = SETTINGS.read_text().replace("http://teacher:8080", f"http://127.0.0.1:{teacher}")
    config = tmp_path / "flywheel.toml"
    config.write_text(settings.replace('"kafka:9094"', '""'))

    def command(name: str) -> list[str]:
        entrypoint = services[name].get("entrypoint") or ["tini", "--", "flywheel"]
        return [*entrypoint, *(services[name].get("command") or [])]

    mine = {
        "FLYWHEEL_CONFIG": str(config),
        "FLYWHEEL_DATA_DIR": str(data),
        "FLYWHEEL_GATEWAY__PORT": str(gateway),
        "FLYWHEEL_LEARNER__PORT": str(learner),
    }
    for name, value in services["flywheel"]["environment"].items():
        mine.setdefault(name, value)
    mine["FLYWHEEL_LEARNER__HOST"] = "127.0.0.1"
    asked = f"http://127.0.0.1:{desk}"
    teach = [word.replace("8080", str(teacher)) for word in command("teacher")]
    app = {**services["example-app"]["environment"], "PORT": str(desk), "HOST": "127.0.0.1"}
    app["MODEL_URL"] = f"http://127.0.0.1:{gateway}/v1"
    with ExitStack() as stack:
        local = [word.replace("0.0.0.0", "127.0.0.1") for word in teach]
        stack.enter_context(started(local, tmp_path / "teacher.log"))
        stack.enter_context(started(command("flywheel"), tmp_path / "flywheel.log", **mine))
        stack.enter_context(started(command("example-app"), tmp_path / "app.log", **app))
        eventually("the app", lambda: urllib.request.urlopen(asked, timeout=2), tmp_path)
        eventually("the gateway", lambda: (data / "run" / "gateway.json").exists(), tmp_path)
        eventually("the learner", lambda: read_operator_token(data), tmp_path)

        request = urllib.request.Request(f"{asked}/messages", b"where is my parcel?")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["queue"] == "where_is_my_order"

        customers = [*command("customers"), "--count=30", f"--url={asked}/messages"]
        stack.enter_context(started(customers, tmp_path / "customers.log"))
        client = LearnerClient(f"http://127.0.0.1:{learner}", read_operator_token(data), "test")

        def labels() -> bool:
            (task,) = client.get("status")["tasks"]
            found: dict[str, int] = task["figures"]["labels_by_side"]
            return sum(found.values()) >= 10

        eventually("ten labels", labels, tmp_path)
