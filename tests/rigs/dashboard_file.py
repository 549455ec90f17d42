"""The committed dashboards, and which metrics and labels a PromQL expression names."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from service.metrics.gateway import GatewayMetrics
from service.metrics.learner import LearnerMetrics

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
READERS = ("health", "quality", "money")
SERIES = re.compile(r"\b(flywheel_\w+)")
MATCHERS = re.compile(r"\b(flywheel_\w+)\{([^}]*)\}")
LABEL_NAME = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
# What a variable stands for where Grafana is not there to fill it in.
VARIABLES = {"$__rate_interval": "30s", "$task": ".*"}
# Prometheus adds these; `job` is the scrape's, so ours of that name arrives as exported_job.
ADDED_LABELS = frozenset({"instance", "job", "le", "exported_job"})


def dashboard(reader: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GRAFANA / "dashboards" / f"{reader}.json").read_text())
    return loaded


def panels(reader: str) -> list[dict[str, Any]]:
    """All panels of a dashboard but the rows."""
    return [panel for panel in dashboard(reader)["panels"] if panel["type"] != "row"]


def all_panels() -> dict[str, dict[str, Any]]:
    """Each panel once, by its title: the first row is the same on every dashboard."""
    return {panel["title"]: panel for reader in READERS for panel in panels(reader)}


def expressions(panel: Mapping[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def filled_in(expr: str) -> str:
    """The expression as Prometheus would get it."""
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr, expr
    return expr


def families() -> Mapping[str, frozenset[str]]:
    """Labels by the name of every series that our two planes can export."""
    registry = CollectorRegistry()
    found: dict[str, frozenset[str]] = {}
    for plane in (GatewayMetrics(registry), LearnerMetrics(registry)):
        for metric in vars(plane).values():
            if hasattr(metric, "describe"):
                labels = frozenset(metric._labelnames)
                found |= dict.fromkeys(_series(metric.describe()[0]), labels)
    return found


def _series(family: Any) -> Iterator[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    for suffix in suffixes.get(family.type, ("",)):
        yield family.name + suffix


def unknown_series(expr: str) -> set[str]:
    """Series in `expr` that nothing exports. Names with a colon are recorded ones."""
    plain = re.sub(r"[\w]+(:\w+)+", "", expr)
    return set(SERIES.findall(plain)) - set(families())


def unknown_labels(expr: str) -> set[tuple[str, str]]:
    """(series, label) where a matcher names a label that the series has not."""
    known = families()
    return {
        (series, label)
        for series, matchers in MATCHERS.findall(expr)
        for label in LABEL_NAME.findall(matchers)
        if series in known and label not in known[series] | ADDED_LABELS
    }
