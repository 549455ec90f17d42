"""Write the Grafana dashboard. The JSON beside this file is made by it: edit row_*.py instead.

python deploy/grafana/generate.py            write it
python deploy/grafana/generate.py --print    print it
"""

import argparse
import json
from itertools import count
from pathlib import Path

from blocks import DATASOURCE
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from row_glance import at_a_glance
from row_loop import loop
from row_money import money
from row_quality import quality
from row_serving import serving

UID = "flywheel"
# Title, panels, and whether the row is repeated for each task.
ROWS = (
    ("At a glance", at_a_glance, False),
    ("Traffic and serving", serving, False),
    ("Quality and coverage: $task", quality, True),
    ("Loop", loop, False),
    ("Money", money, False),
)
OUTPUT = Path(__file__).resolve().parent / "dashboards" / "flywheel.json"


def build() -> models.Dashboard:
    """The dashboard, laid out by the builder: the spans of each line of panels add up to 24."""
    made = (
        dashboard.Dashboard("Flywheel")
        .uid(UID)
        .description("Serving, quality, learning and money of a flywheel.")
        .tags(["flywheel"])
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
    for title, panels, for_each_task in ROWS:
        row = dashboard.Row(title).id(next(number))
        made = made.with_row(row.repeat("task") if for_each_task else row)
        for panel in panels():
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


def rendered() -> str:
    """The dashboard as the file holds it."""
    return json.dumps(build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the Grafana dashboard.")
    parser.add_argument("--print", action="store_true", help="print it instead")
    if parser.parse_args().print:
        print(rendered(), end="")
    else:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(rendered())


if __name__ == "__main__":
    main()
