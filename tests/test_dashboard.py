"""The Grafana dashboard is what its generator makes, and every panel of it can be acted on."""

import itertools
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from dashboard_file import (
    DASHBOARD_FILE,
    GRAFANA,
    dashboard,
    expressions,
    families,
    panels,
    unknown_labels,
    unknown_series,
)

PANELS = [pytest.param(panel, id=panel["title"]) for panel in panels()]
QUERIES = [
    pytest.param(expr, id=f"{panel['title']} {index}")
    for panel in panels()
    for index, expr in enumerate(expressions(panel))
]


def test_the_committed_dashboard_is_what_the_generator_makes() -> None:
    made = subprocess.run(
        [sys.executable, str(GRAFANA / "generate.py"), "--print"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made == DASHBOARD_FILE.read_text(), "run: python deploy/grafana/generate.py"


def test_the_dashboard_is_classic_json_with_a_fixed_uid() -> None:
    found = dashboard()
    assert found["uid"] == "flywheel"
    assert 39 <= found["schemaVersion"] <= 41
    assert found["title"]
    assert "id" not in found, "a database number of some Grafana"


def test_data_source_and_task_are_variables() -> None:
    variables = {item["name"]: item for item in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["task"]["query"] == "label_values(flywheel_labels_stored, task)"
    assert variables["task"]["datasource"]["uid"] == "${datasource}"
    assert variables["task"]["includeAll"]


def test_the_rows_answer_the_operators_questions_in_order() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert [title.split(":")[0] for title in rows] == [
        "At a glance",
        "Traffic and serving",
        "Quality and coverage",
        "Loop",
        "Money",
    ]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_what_to_do(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"]
    assert len(panel["description"]) > 60, "what to do when it looks bad"
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


def test_panel_titles_and_numbers_are_unique() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"]]
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(titles)) == len(titles)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("expr", QUERIES)
def test_a_query_names_only_what_we_export(expr: str) -> None:
    assert not unknown_series(expr)
    assert not unknown_labels(expr)


@pytest.mark.parametrize("expr", QUERIES)
def test_rates_follow_the_scrape_interval_and_no_job_is_hard_coded(expr: str) -> None:
    windows = re.findall(r"(?:rate|increase|delta|deriv)\([^[]*\[([^]]+)\]", expr)
    assert len(windows) == len(re.findall(r"\b(?:rate|increase|delta|deriv)\(", expr))
    assert set(windows) <= {"$__rate_interval"}
    assert not re.search(r"\b(?:job|instance)\s*=", expr)


def test_only_counters_are_turned_into_rates() -> None:
    for panel in panels():
        for expr in expressions(panel):
            for name in re.findall(r"rate\((\w+)", expr):
                assert name.endswith(("_total", "_bucket", "_sum", "_count")), expr


def test_every_metric_that_we_export_is_on_the_dashboard() -> None:
    shown = " ".join(expr for panel in panels() for expr in expressions(panel))
    metrics = {re.sub(r"_(bucket|count|sum)$", "", name) for name in families()}
    missing = {name for name in metrics if not re.search(rf"\b{name}(_bucket|_sum)?\b", shown)}
    assert not missing


def test_no_panels_overlap_or_leave_the_grid() -> None:
    boxes = [(panel["title"], panel["gridPos"]) for panel in dashboard()["panels"]]
    for title, box in boxes:
        assert box["x"] >= 0, title
        assert box["x"] + box["w"] <= 24, title
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one} overlaps {other}"


def test_provisioning_loads_the_dashboard_and_knows_the_scrape_interval() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/flywheel.yaml").read_text())
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    scrape = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    assert provider["providers"][0]["options"]["path"]
    interval = source["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == scrape["global"]["scrape_interval"]
