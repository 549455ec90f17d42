"""A real Prometheus scrapes the running program: what we ship for it works on what we export."""

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from dashboard_file import all_panels, filled_in
from demo_fixture import RunningDemo
from prometheus_server import DEPLOY, PrometheusServer, program, running_prometheus

pytestmark = [pytest.mark.prometheus, pytest.mark.slow, pytest.mark.timeout(900)]

# What comes last: labels are bought after the promotion, and estimates are made from whole
# minutes since it. Until then the gauges are NaN.
LAST_TO_COME = (
    "flywheel_teacher_calls_total",
    'flywheel_trusted_coverage{bound="low"}',
    'flywheel_agreement{scope="served",bound="low"}',
)
ESTIMATE_SECONDS = 300
SCRAPED_SECONDS = 20

# Queries that a healthy run gives no data for: (panel title, legend) and why.
MAY_BE_EMPTY: dict[tuple[str, str], str] = {
    ("Calls of the teacher that failed", "{{kind}}"): "the teacher does not fail",
    ("Turned away, or beyond the student", "turned away: {{reason}}"): "all requests are sound",
    ("Turned away, or beyond the student", "to the teacher: {{reason}}"): "none asks for tools",
    ("Turned away, or beyond the student", "read in part"): "no message is that long",
    ("Capture", "dropped: {{reason}}"): "nothing is lost",
    ("Events read, by who answered", "not assessed"): "the gateway is there",
    ("Events read, by who answered", "past the student: {{reason}}"): "none asks for tools",
    ("Feedback", "{{verdict}}"): "the customers give none",
    ("Notifications", "{{kind}} {{outcome}}"): "no webhook is set",
    ("Texts that the student failed on", "{{reason}}"): "no student failed",
    ("Texts that the student failed on", "engine {{reason}}"): "no engine ended",
}


def _name(rule: dict[str, Any]) -> str:
    name: str = rule.get("alert") or rule["record"]
    return name


PANELS = [pytest.param(panel, id=title) for title, panel in all_panels().items()]
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]


@pytest.fixture(scope="session")
def installed() -> str:
    """Asked for before the demo, which would be started for nothing."""
    return program("prometheus")


@pytest.fixture(scope="module")
def prometheus(
    installed: str, running_demo: RunningDemo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    """Has scraped a demo whose student was approved, answers and is estimated."""
    targets = {
        "flywheel-gateway": f"127.0.0.1:{running_demo.gateway_port}",
        "flywheel-learner": f"127.0.0.1:{running_demo.learner_port}",
    }
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), targets) as server:
        running_demo.wait_until_promoted()
        for expr in LAST_TO_COME:
            _wait_for(server, expr, ESTIMATE_SECONDS, running_demo)
        time.sleep(SCRAPED_SECONDS)
        yield server


def _wait_for(server: PrometheusServer, expr: str, seconds: float, demo: RunningDemo) -> None:
    deadline = time.monotonic() + seconds
    while not _has_data(server.query(expr)):
        if time.monotonic() > deadline:
            pytest.fail(f"no data for {expr} after {seconds:g} s\n{demo.tail()}")
        time.sleep(1)


def _has_data(samples: list[dict[str, Any]]) -> bool:
    points = [point for one in samples for point in one.get("values") or [one["value"]]]
    return any(not math.isnan(float(value)) for _, value in points)


def test_both_planes_are_scraped_under_the_jobs_that_the_alerts_know(
    prometheus: PrometheusServer,
) -> None:
    found = {sample["metric"]["job"]: sample["value"][1] for sample in prometheus.query("up")}
    assert found == {"flywheel-gateway": "1", "flywheel-learner": "1"}


@pytest.mark.parametrize("panel", PANELS)
def test_a_panels_queries_evaluate_and_return_data(
    panel: dict[str, Any], prometheus: PrometheusServer
) -> None:
    empty = []
    for target in panel["targets"]:
        # As Grafana asks: an estimate starts anew when another version is approved meanwhile.
        samples = prometheus.query_range(filled_in(target["expr"]), seconds=5 * 60, step=5)
        if not _has_data(samples) and (panel["title"], target["legendFormat"]) not in MAY_BE_EMPTY:
            empty.append((target["legendFormat"], target["expr"]))
    assert not empty


@pytest.mark.parametrize("rule", [pytest.param(rule, id=_name(rule)) for rule in RULES])
def test_a_rules_expression_evaluates(rule: dict[str, Any], prometheus: PrometheusServer) -> None:
    prometheus.query(rule["expr"])


def test_prometheus_finds_no_fault_with_any_rule(prometheus: PrometheusServer) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_recorded_series_exist_wherever_their_sources_do(prometheus: PrometheusServer) -> None:
    recorded = [rule["record"] for rule in RULES if "record" in rule]
    assert [name for name in recorded if not prometheus.query(name)] == []


def test_a_healthy_run_raises_no_critical_alert(prometheus: PrometheusServer) -> None:
    alerts = prometheus.get("alerts")["alerts"]
    critical = [alert for alert in alerts if alert["labels"]["severity"] == "critical"]
    assert [alert for alert in critical if alert["state"] == "firing"] == []


def test_the_task_variable_lists_the_tasks(
    prometheus: PrometheusServer, running_demo: RunningDemo
) -> None:
    found = {s["metric"]["task"] for s in prometheus.query("flywheel_labels_stored")}
    assert found == {task["task"] for task in running_demo.client.get("status")["tasks"]}
