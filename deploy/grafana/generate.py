"""Write the Grafana dashboards. The JSON beside this file is made by it: edit row_*.py instead.

python deploy/grafana/generate.py            write them
python deploy/grafana/generate.py --check    say whether they are as this would write them
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

from blocks import DATASOURCE, READERS, Panel, link_to
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from row_glance import at_a_glance
from row_learning import learning
from row_money import money
from row_now import now
from row_processes import processes
from row_quality import quality
from row_serving import serving
from row_topic import topic
from row_versions import versions

FOLDER = Path(__file__).resolve().parent / "dashboards"


class Row(NamedTuple):
    """Some panels under a title."""

    title: str
    panels: Callable[[], list[Panel]]
    for_each_task: bool = False


GLANCE = Row("Is it serving, is it good, is anyone needed?", at_a_glance)
DESCRIPTIONS = {
    "health": "The service's health, for whoever is on call.",
    "quality": "The student's quality and coverage, for whoever answers for what it says.",
    "money": "What it costs and what it saves, for whoever pays.",
}
ROWS: Mapping[str, tuple[Row, ...]] = {
    "health": (
        GLANCE,
        Row("Now", now),
        Row("Answering", serving),
        Row("Topic and ingest", topic),
        Row("Processes and jobs", processes),
    ),
    "quality": (
        GLANCE,
        Row("Quality and coverage: $task", quality, for_each_task=True),
        Row("Learning", learning),
        Row("Versions", versions),
    ),
    "money": (GLANCE, Row("Money", money)),
}


def build(reader: str) -> models.Dashboard:
    """One dashboard, laid out by the builder: the spans of each line of panels add up to 24."""
    made = (
        dashboard.Dashboard(f"Flywheel: {reader}")
        .uid(f"flywheel-{reader}")
        .description(DESCRIPTIONS[reader])
        .tags(["flywheel"])
        .links([link_to(other) for other in READERS if other != reader])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Data source")
            .description("The Prometheus that scrapes gateway and learner.")
            .type("prometheus")
        )
        .with_variable(_task_variable())
    )
    number = count(1)  # links to panels carry it
    for row in ROWS[reader]:
        opened = dashboard.Row(row.title).id(next(number))
        made = made.with_row(opened.repeat("task") if row.for_each_task else opened)
        for panel in row.panels():
            made = made.with_panel(panel.id(next(number)))
    return made.build()


def _task_variable() -> dashboard.QueryVariable:
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable("task")
        .label("Task")
        .description("Which tasks to show.")
        .datasource(DATASOURCE)
        .query("label_values(flywheel_labels_stored, task)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )


def rendered(reader: str) -> str:
    """A dashboard as its file holds it."""
    return json.dumps(build(reader), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="only compare")
    only_compare = parser.parse_args().check
    files = {FOLDER / f"{reader}.json": rendered(reader) for reader in READERS}
    if only_compare:
        old = [path.name for path, text in files.items() if path.read_text() != text]
        strange = [path.name for path in FOLDER.glob("*.json") if path not in files]
        sys.exit(f"not as they would be written: {old + strange}" if old + strange else 0)
    FOLDER.mkdir(exist_ok=True)
    for path, text in files.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
