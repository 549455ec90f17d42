"""Write docs/reference/metrics.md from service/metrics/: its metrics, and the comments on them.

python deploy/prometheus/metrics_page.py            write it
python deploy/prometheus/metrics_page.py --print    print it
"""

import argparse
import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = [ROOT / "service" / "metrics" / f"{plane}.py" for plane in ("gateway", "learner")]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PAGE = ROOT / "docs" / "reference" / "metrics.md"
PLANES = {"GatewayMetrics": "Gateway", "LearnerMetrics": "Learner"}
INTRODUCTION = """\
<!-- Written by `python deploy/prometheus/metrics_page.py` from service/metrics/. -->

# Metrics

What `/metrics` of the two planes exports, for Prometheus. Histograms have the series `_bucket`,
`_sum` and `_count`. Prometheus adds `job` and `instance`; the learner's own label `job` arrives
as `exported_job`. The student version is a label of the two `..._student_info` gauges only.

Beside these each plane exports what its process uses (`process_resident_memory_bytes` and so on).
The dashboards are in `deploy/grafana/dashboards/`, the alerts in `deploy/prometheus/alerts.yml`;
[alerts.md](alerts.md) lists them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declaration in service/metrics/."""

    name: str
    kind: str
    about: str
    labels: tuple[str, ...]
    notes: str  # the comment above it: values of the labels, and what to do


def declared(source: str) -> Iterator[tuple[str, list[Metric]]]:
    """Plane by plane, in the order of the file."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            made = [found for found in ast.walk(node) if isinstance(found, ast.Assign)]
            made.sort(key=lambda assign: assign.lineno)
            metrics = [_metric(assign, lines) for assign in made if _is_metric(assign)]
            yield PLANES[node.name], metrics


def _is_metric(assign: ast.Assign) -> bool:
    call = assign.value
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("Counter", "Gauge", "Histogram")
    )


def _metric(assign: ast.Assign, lines: list[str]) -> Metric:
    call = assign.value
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    name, about, *rest = (ast.literal_eval(argument) for argument in call.args)
    return Metric(
        name=name,
        kind=call.func.id.lower(),
        about=about,
        labels=tuple(rest[0]) if rest else (),
        notes=_comment_above(lines, assign.lineno),
    )


def _comment_above(lines: list[str], number: int) -> str:
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        found.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(found)


def alerts_by_metric(rules: str) -> Mapping[str, list[str]]:
    """Which alerts look at a metric, itself or through a recorded series."""
    blocks = re.split(r"\n\s+- (?=alert:|record:)", rules)[1:]
    recorded: dict[str, set[str]] = {}
    found: dict[str, list[str]] = {}
    for block in blocks:
        kind, name = re.match(r"(alert|record): (\S+)", block).groups()  # type: ignore[union-attr]
        expr = block.partition("expr:")[2].partition("labels:")[0]
        names = set(re.findall(r"(?<![\w:])flywheel_\w+(?![\w:])", expr))
        for series in re.findall(r"\w+:\w+:\w+", expr):
            names |= recorded.get(series, set())
        if kind == "record":
            recorded[name] = names
            continue
        for metric in names:
            found.setdefault(metric, []).append(name)
    return found


def page() -> str:
    """The whole page."""
    alerts = alerts_by_metric(ALERTS.read_text())
    parts = [INTRODUCTION]
    for plane, metrics in (found for path in SOURCES for found in declared(path.read_text())):
        parts.append(f"\n## {plane}\n")
        parts += [_entry(metric, alerts.get(metric.name, [])) for metric in metrics]
    return "".join(parts)


def _entry(metric: Metric, alerts: list[str]) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    lines = [
        f"\n### `{metric.name}`\n",
        f"{metric.about} {metric.kind.capitalize()}{f' by {labels}' if labels else ''}.",
    ]
    if metric.notes:
        lines.append(f"{metric.notes}")
    if alerts:
        links = ", ".join(f"[{name}](../runbooks/{name}.md)" for name in alerts)
        lines.append(f"Alerts: {links}.")
    return "\n".join([lines[0], "\n\n".join(lines[1:]), ""])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the page about the metrics.")
    parser.add_argument("--print", action="store_true", help="print it instead")
    if parser.parse_args().print:
        print(page(), end="")
    else:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
