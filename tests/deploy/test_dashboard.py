"""The Grafana dashboards are what their generator makes, and every panel can be acted on."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboard_file import (
    GRAFANA,
    READERS,
    all_panels,
    dashboard,
    expressions,
    families,
    panels,
    unknown_labels,
    unknown_series,
)

ROOT = Path(__file__).parents[2]
FIRST_ROW = "Is it serving, is it good, is anyone needed?"
PANELS = [pytest.param(panel, id=title) for title, panel in all_panels().items()]
QUERIES = [
    pytest.param(expr, id=f"{title} {index}")
    for title, panel in all_panels().items()
    for index, expr in enumerate(expressions(panel))
]
# How a sentence begins, or goes on, that tells somebody to do something.
TELLS = re.compile(
    r"\b(follow|runbooks? [A-Z]\w+|look at|see|compare|open|restart|roll back|report it|add|raise|"
    r"lower|lengthen|move|make room|give|ask for|talk to|repair|approve|release|needs? labels|"
    r"labels are needed|has the reason|have their reason|has the reasons|wait for)\b",
    re.IGNORECASE,
)


def test_the_committed_dashboards_are_what_the_generator_makes() -> None:
    done = subprocess.run(
        [sys.executable, str(GRAFANA / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + "run: python deploy/grafana/generate.py"


@pytest.mark.parametrize("reader", READERS)
def test_a_dashboard_is_classic_json_with_a_fixed_uid(reader: str) -> None:
    found = dashboard(reader)
    assert found["uid"] == f"flywheel-{reader}"
    assert 39 <= found["schemaVersion"] <= 41
    assert found["title"] == f"Flywheel: {reader}"
    assert found["description"].endswith(".")
    assert "id" not in found, "a database number of some Grafana"


@pytest.mark.parametrize("reader", READERS)
def test_data_source_and_task_are_variables(reader: str) -> None:
    variables = {item["name"]: item for item in dashboard(reader)["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["task"]["query"] == "label_values(flywheel_labels_stored, task)"
    assert variables["task"]["datasource"]["uid"] == "${datasource}"
    assert variables["task"]["includeAll"]


@pytest.mark.parametrize("reader", READERS)
def test_the_first_row_answers_the_three_questions_in_one_line(reader: str) -> None:
    first, *rest = dashboard(reader)["panels"]
    assert (first["type"], first["title"]) == ("row", FIRST_ROW)
    row = list(itertools.takewhile(lambda panel: panel["type"] != "row", rest))
    questions = [panel["title"].split(":")[0] for panel in row]
    assert questions == ["Serving", "Serving", "Good", "Good", "Needed", "Needed"]
    assert len({panel["gridPos"]["y"] for panel in row}) == 1
    assert sum(panel["gridPos"]["w"] for panel in row) == 24
    assert {panel["type"] for panel in row} == {"stat"}


@pytest.mark.parametrize("reader", READERS)
def test_a_dashboard_leads_to_the_two_others_at_the_same_time_and_task(reader: str) -> None:
    links = dashboard(reader)["links"]
    others = [f"/d/flywheel-{other}" for other in READERS if other != reader]
    assert [link["url"] for link in links] == others
    assert all(link["keepTime"] and link["includeVars"] for link in links)
    assert all(link["type"] == "link" and link["title"] for link in links)


def test_links_from_numbers_lead_to_dashboards_that_there_are() -> None:
    uids = {f"/d/flywheel-{reader}" for reader in READERS}
    links = [link["url"] for panel in all_panels().values() for link in panel.get("links", [])]
    assert links
    assert set(links) <= uids


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_what_to_do(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"]
    assert len(panel["description"]) > 60
    assert panel["description"].endswith(".")
    assert TELLS.search(panel["description"]), "what to do when it looks bad"
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_what_a_panels_sentence_names_is_there(panel: dict[str, Any]) -> None:
    for name in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", panel["description"]):
        assert (ROOT / "docs" / "runbooks" / f"{name}.md").is_file(), name
    for title in re.findall(r"(?:see|at|compare|in|of) '([A-Z][^']+)'", panel["description"]):
        assert title in all_panels(), title


@pytest.mark.parametrize("reader", READERS)
def test_panel_titles_and_numbers_are_unique(reader: str) -> None:
    titles = [panel["title"] for panel in dashboard(reader)["panels"]]
    numbers = [panel["id"] for panel in dashboard(reader)["panels"]]
    assert len(set(titles)) == len(titles)
    assert len(set(numbers)) == len(numbers)


def test_one_title_is_one_panel_everywhere() -> None:
    for reader in READERS:
        for panel in panels(reader):
            assert expressions(panel) == expressions(all_panels()[panel["title"]])


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
    for panel in all_panels().values():
        for expr in expressions(panel):
            for name in re.findall(r"rate\((\w+)", expr):
                assert name.endswith(("_total", "_bucket", "_sum", "_count")), expr


def test_every_metric_that_we_export_is_on_a_dashboard() -> None:
    shown = " ".join(expr for panel in all_panels().values() for expr in expressions(panel))
    metrics = {re.sub(r"_(bucket|count|sum)$", "", name) for name in families()}
    missing = {name for name in metrics if not re.search(rf"\b{name}(_bucket|_sum)?\b", shown)}
    assert not missing


@pytest.mark.parametrize("reader", READERS)
def test_no_panels_overlap_or_leave_the_grid(reader: str) -> None:
    boxes = [(panel["title"], panel["gridPos"]) for panel in dashboard(reader)["panels"]]
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


def test_provisioning_loads_the_dashboards_and_knows_the_scrape_interval() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/flywheel.yaml").read_text())
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    scrape = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    assert provider["providers"][0]["options"]["path"]
    interval = source["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == scrape["global"]["scrape_interval"]
