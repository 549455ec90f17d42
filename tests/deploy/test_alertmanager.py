"""A real Prometheus and a real Alertmanager bring what goes wrong to a webhook.

The numbers are real: a learner's ingest and watch, over a Kafka broker, export them in this
process. The rules are the shipped ones with every `for` shortened, the routes are the shipped
ones with this test's webhook and shorter waits.
"""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kafka.codec
import pytest
import yaml
from core_samples import TASK
from ingest_rig import KEY, make_ingest, record
from kafka import KafkaProducer
from kafka_broker import topic_name
from learner_rig import Rig, open_rig
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_server import (
    DEPLOY,
    PrometheusServer,
    program,
    running_alertmanager,
    running_prometheus,
)
from webhook import Webhook, running_webhook

from pipelines.records.native import encode_native
from pipelines.records.signature import sign
from pipelines.types import StudentAnswer
from service.keys import GATEWAY_PRODUCER
from service.learner.sampling import Sampling
from service.learner.watch import Watch
from service.metrics.gateway import GatewayMetrics
from service.operator.board import Board
from service.rules import first_policy
from service.topics.kafka import KafkaOptions, KafkaTopicReader
from storage.artifacts import Artifacts
from storage.decisions import record_decision
from storage.evaluations import StoredEvaluation, add_evaluation
from storage.ledger import Ledger
from storage.live import LiveStudent, LiveTask

SHIPPED = DEPLOY / "alertmanager.yml"
CONFIG = yaml.safe_load(SHIPPED.read_text())
ALERTS = {
    rule["alert"]: rule["labels"]["severity"]
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
CERTIFIED = 0.9
CHAMPION = LiveStudent(
    name="support-v1-abcdef01",
    number=1,
    student="a" * 64,
    base="e" * 64,
    report="r" * 64,
    decision="d" * 64,
    threshold=0.9,
)
COMPRESSED = """
import sys
from kafka import KafkaProducer
producer = KafkaProducer(bootstrap_servers=sys.argv[1], compression_type="zstd")
producer.send(sys.argv[2], value=b"compressed " * 50, partition=0)
producer.flush(30)
producer.close()
"""


def amtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("amtool", "prometheus-alertmanager"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.prometheus
def test_amtool_passes_the_configuration() -> None:
    assert "SUCCESS" in amtool("check-config", str(SHIPPED))


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "page"), ("warning", "ticket"), ("info", "ticket")]
)
def test_severity_decides_who_is_told(severity: str, receiver: str) -> None:
    route = ("config", "routes", "test", f"--config.file={SHIPPED}")
    told = amtool(*route, "service=flywheel", f"severity={severity}", "alertname=Whatever")
    assert told.strip() == receiver


def test_what_silences_and_what_is_silenced_are_alerts_that_there_are() -> None:
    for rule in CONFIG["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            if matcher.startswith("alertname"):
                names = re.findall(r"\w+", matcher.partition("=")[2])
                assert set(names) <= set(ALERTS), matcher


def test_nothing_critical_is_silenced_by_anything_less() -> None:
    for rule in CONFIG["inhibit_rules"]:
        sources, targets = _names(rule["source_matchers"]), _names(rule["target_matchers"])
        if any(ALERTS[name] == "critical" for name in targets):
            assert {ALERTS[name] for name in sources} == {"critical"}, rule


def _names(matchers: list[str]) -> list[str]:
    (found,) = (one for one in matchers if one.startswith("alertname"))
    return re.findall(r"\w+", found.partition("=")[2])


class Plant:
    """Ingest and watch of a learner with a champion, on a topic of two partitions."""

    def __init__(self, rig: Rig, options: KafkaOptions) -> None:
        self.rig = rig
        self.options = options
        self.stop = threading.Event()
        self.reader = KafkaTopicReader(options)
        self.board = Board()
        self.board.live = {rig.task.name: LiveTask(champion=CHAMPION)}
        self.ingest = make_ingest(rig, reader=self.reader, board=self.board)
        self.ledger = Ledger(rig.folder / "ledger")
        self.watch = Watch(
            database=rig.database,
            artifacts=Artifacts(rig.folder / "artifacts"),
            ledger=self.ledger,
            settings=rig.settings,
            tasks={rig.task.name: rig.task},
            sampling=Sampling({rig.task.name: first_policy(rig.settings, b"salt")}),
            metrics=rig.metrics,
            board=self.board,
            start_training=lambda task, reason: None,
            now=lambda: datetime.now(UTC),
        )
        self._sent = 0
        self._crown()
        self.threads = [
            threading.Thread(target=self.ingest.run, args=(self.stop,)),
            threading.Thread(target=self._look),
        ]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
        self.reader.close()
        self.ledger.close()

    def traffic(self, count: int, confidence: float) -> None:
        """Prompts that the student answered, as a gateway puts them onto partition 1."""
        producer = KafkaProducer(bootstrap_servers=self.options.bootstrap_servers)
        answer = StudentAnswer(version=CHAMPION.name, label=TASK.labels[0], confidence=confidence)
        for _ in range(count):
            self._sent += 1
            value = encode_native(
                record(f"e{self._sent}", served_by="student", answer=answer.label, student=answer)
            )
            headers = list(sign(value, GATEWAY_PRODUCER, KEY))
            producer.send(self.options.topic, value=value, headers=headers, partition=1)
        producer.flush(30)
        producer.close()

    def block(self) -> None:
        """Partition 0 gets a batch that nobody here can read: from a process that can write it."""
        where = (self.options.bootstrap_servers, self.options.topic)
        subprocess.run([sys.executable, "-c", COMPRESSED, *where], check=True, timeout=60)

    def _crown(self) -> None:
        now, task = datetime.now(UTC), self.rig.task.name
        with self.rig.database.transaction() as tx:
            record_decision(
                tx,
                self.rig.folder / "decisions.jsonl",
                task=task,
                action="approve",
                student=CHAMPION.student,
                report=CHAMPION.report,
                operator="ada",
                reason="",
                now=now,
            )
            evaluation = StoredEvaluation(
                task=task,
                digest=CHAMPION.student,
                attempt=1,
                champion=None,
                snapshot="s",
                items=400,
                report=CHAMPION.report,
                verdict="better",
                promotable=True,
                compared=True,
                threshold=CHAMPION.threshold,
                coverage=CERTIFIED,
                evaluated_at=now,
            )
            add_evaluation(tx, evaluation)

    def _look(self) -> None:
        while not self.stop.wait(0.5):
            self.watch.run()


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with running_webhook("") as running:
        yield running


@pytest.fixture
def alertmanager(hook: Webhook, tmp_path: Path) -> Iterator[str]:
    """The shipped routes, to this test's webhook and without the long waits."""
    config = yaml.safe_load(SHIPPED.read_text())
    for receiver in config["receivers"]:
        for one in receiver["webhook_configs"]:
            one["url"] = hook.url
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    path = tmp_path / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    with running_alertmanager(tmp_path, path) as address:
        yield address


@pytest.fixture
def quick_rules(tmp_path: Path) -> Path:
    """The shipped rules with every `for` of two seconds."""
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "2s"
    path = tmp_path / "alerts.yml"
    path.write_text(yaml.safe_dump(rules))
    return path


@pytest.mark.kafka
@pytest.mark.prometheus
@pytest.mark.timeout(900)
def test_lost_coverage_and_a_stuck_partition_reach_a_webhook(
    kafka_broker: Any,
    alertmanager: str,
    hook: Webhook,
    quick_rules: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = KafkaOptions(
        bootstrap_servers=kafka_broker.bootstrap_servers,
        topic=topic_name(),
        watch_seconds=0.2,
        connect_timeout_seconds=10,
    )
    kafka_broker.create_topic(options.topic, partitions=2)
    with ExitStack() as opened:
        rig = opened.enter_context(open_rig(tmp_path / "data"))
        plant = Plant(rig, options)
        opened.callback(plant.close)
        gateway = CollectorRegistry()
        GatewayMetrics(gateway)
        targets = {
            "flywheel-learner": _served(rig.metrics.registry, opened),
            "flywheel-gateway": _served(gateway, opened),
        }
        prometheus = opened.enter_context(
            running_prometheus(tmp_path, targets, rules=quick_rules, alertmanager=alertmanager)
        )

        plant.traffic(900, confidence=0.97)
        _wait_for(prometheus, f'flywheel_trusted_coverage{{bound="low"}} > {CERTIFIED}')
        _evaluated_again(prometheus)
        assert _firing(hook) == {}, "all is well"

        plant.traffic(3000, confidence=0.4)
        monkeypatch.setattr(kafka.codec, "zstd", None)  # as if zstandard were not installed
        plant.block()
        hook.wait_for(lambda: {"CoverageLost", "TopicStuck"} <= set(_firing(hook)), 90)

        lost = _firing(hook)["CoverageLost"]
        assert lost["labels"]["task"] == TASK.name
        assert lost["labels"]["severity"] == "warning"
        assert lost["annotations"]["runbook_url"] == "docs/runbooks/CoverageLost.md"
        assert _firing(hook)["TopicStuck"]["annotations"]["summary"].startswith("1 problem")
        assert {one["receiver"] for one in hook.accepted} == {"ticket"}, "nobody is woken"
        assert set(_firing(hook)) == {"CoverageLost", "TopicStuck"}

        monkeypatch.undo()
        blocked = plant.reader._blocked  # a minute later
        plant.reader._blocked = {p: (why, 0.0) for p, (why, _) in blocked.items()}
        hook.wait_for(lambda: "TopicStuck" in _resolved(hook), 90)


@pytest.mark.prometheus
def test_a_dead_learner_is_told_once_and_not_all_that_follows(
    alertmanager: str, hook: Webhook
) -> None:
    _raise(alertmanager, "LearnerDown", "critical")
    hook.wait_for(lambda: "LearnerDown" in _firing(hook))
    followers = ("EscalationsWithoutLease", "JobNotFresh")
    for name in followers:
        _raise(alertmanager, name, "warning")
    _raise(alertmanager, "GatewayFailing", "critical")
    hook.wait_for(lambda: "GatewayFailing" in _firing(hook))
    assert not set(followers) & set(_firing(hook))
    told = [one["receiver"] for one in hook.accepted if _has(one, "LearnerDown")]
    assert set(told) == {"page"}

    with urllib.request.urlopen(f"http://{alertmanager}/api/v2/alerts", timeout=10) as answer:
        states = {one["labels"]["alertname"]: one["status"] for one in json.load(answer)}
    assert all(states[name]["inhibitedBy"] for name in followers)
    assert not states["GatewayFailing"]["inhibitedBy"]


def _served(registry: CollectorRegistry, opened: ExitStack) -> str:
    server, thread = start_http_server(0, "127.0.0.1", registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    opened.callback(close)
    return f"127.0.0.1:{server.server_port}"


def _wait_for(prometheus: PrometheusServer, expr: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not prometheus.query(expr):
        assert time.monotonic() < deadline, f"never: {expr}"
        time.sleep(0.2)


def _evaluated_again(prometheus: PrometheusServer) -> None:
    """Long enough for an alert that is true to fire: each rule twice, after its `for`."""
    since = datetime.now(UTC)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        groups = prometheus.get("rules")["groups"]
        oldest = min(datetime.fromisoformat(group["lastEvaluation"][:26]) for group in groups)
        if (oldest.replace(tzinfo=UTC) - since).total_seconds() > 4:
            return
        time.sleep(0.3)
    raise AssertionError("the rules are not evaluated")


def _has(message: dict[str, Any], name: str) -> bool:
    return any(alert["labels"]["alertname"] == name for alert in message["alerts"])


def _with_status(hook: Webhook, status: str) -> dict[str, dict[str, Any]]:
    return {
        alert["labels"]["alertname"]: alert
        for message in list(hook.accepted)
        for alert in message["alerts"]
        if alert["status"] == status
    }


def _firing(hook: Webhook) -> dict[str, dict[str, Any]]:
    return _with_status(hook, "firing")


def _resolved(hook: Webhook) -> dict[str, dict[str, Any]]:
    return _with_status(hook, "resolved")


def _raise(alertmanager: str, name: str, severity: str) -> None:
    labels = {"alertname": name, "severity": severity, "service": "flywheel"}
    request = urllib.request.Request(
        f"http://{alertmanager}/api/v2/alerts",
        data=json.dumps([{"labels": labels}]).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
