"""The kinds of panels that the dashboards are made of, and the shapes of their queries."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
LAST = common.ReduceDataOptions().calcs(["lastNotNull"])
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"

READERS = ("health", "quality", "money")
Panel = stat.Panel | timeseries.Panel
Steps = Sequence[tuple[float | None, str]]
CALM: Steps = ((None, GREEN),)
NEUTRAL: Steps = ((None, BLUE),)
BAD_FROM_ONE: Steps = ((None, GREEN), (1, RED))
WARN_FROM_ONE: Steps = ((None, GREEN), (1, ORANGE))
GOOD_FROM_ONE: Steps = ((None, RED), (1, GREEN))
TASK = 'task=~"$task"'


class Query(NamedTuple):
    """One line, or one family of lines, of a panel."""

    expr: str
    legend: str


def rate(metric: str, by: str = "", *, where: str = "") -> str:
    """Events a second, over all gateways."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram, over all gateways."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels)})"


def mean(metric: str) -> str:
    """The mean of a histogram."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def number(
    title: str,
    about: str,
    query: Query,
    *,
    unit: str = "short",
    steps: Steps = CALM,
    words: Mapping[str, tuple[str, str]] | None = None,
    decimals: int | None = None,
    named: bool = False,
    span: int = 4,
) -> stat.Panel:
    """One number, coloured by `steps`. `words` puts (text, colour) in the place of a value."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(DATASOURCE)
        .span(span)
        .height(4)
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_scheme(_colour(models.FieldColorModeId.THRESHOLDS))
        .reduce_options(LAST)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .text_mode(
            common_models.BigValueTextMode.NAME if named else common_models.BigValueTextMode.AUTO
        )
        .no_value("nothing yet")
        .with_target(_target(query, "A"))
    )
    if words:
        panel = panel.mappings([_words(words)])
    return panel if decimals is None else panel.decimals(decimals)


def graph(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    steps: Steps | None = None,
    floor: float | None = 0,
    ceiling: float | None = None,
    stacked: bool = False,
    span: int = 8,
) -> timeseries.Panel:
    """Lines over time. `steps` draws its values as dashed lines."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(DATASOURCE)
        .span(span)
        .height(8)
        .unit(unit)
        .color_scheme(_colour(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .thresholds(_thresholds(steps or CALM))
    )
    if stacked:
        panel = panel.stacking(
            common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
        )
    if steps:
        style = common_models.GraphThresholdsStyleMode.DASHED
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    if floor is not None:
        panel = panel.min(floor)
    if ceiling is not None:
        panel = panel.max(ceiling)
    for index, query in enumerate(queries):
        panel = panel.with_target(_target(query, chr(ord("A") + index)))
    return panel


def link_to(reader: str) -> dashboard.DashboardLink:
    """The dashboard for another reader, at the same time and for the same tasks."""
    return (
        dashboard.DashboardLink(f"Flywheel: {reader}")
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/flywheel-{reader}")
        .icon("dashboard")
        .tooltip(f"The dashboard of {reader}")
        .as_dropdown(False)
        .target_blank(False)
        .keep_time(True)
        .include_vars(True)
        .tags([])
    )


def linked(panel: stat.Panel, reader: str) -> stat.Panel:
    """Lead from a number to the dashboard that explains it."""
    return panel.links([link_to(reader)])


def with_band(panel: timeseries.Panel, low: str, high: str) -> timeseries.Panel:
    """Fill the space between two lines: an interval."""
    value = models.DynamicConfigValue
    hidden = [value(id_val="custom.lineWidth", value=0)]
    band = [
        value(id_val="custom.fillBelowTo", value=low),
        value(id_val="custom.fillOpacity", value=20),
    ]
    unfilled = [value(id_val="custom.fillOpacity", value=0)]
    return panel.override_by_name(low, [*hidden, *unfilled]).override_by_name(high, hidden + band)


def dashed(panel: timeseries.Panel, name: str) -> timeseries.Panel:
    """Draw one line as a mark that the others are held against."""
    dashes = {"fill": "dash", "dash": [10, 10]}
    return panel.override_by_name(
        name,
        [
            models.DynamicConfigValue(id_val="custom.lineStyle", value=dashes),
            models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
        ],
    )


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref).expr(query.expr).legend_format(query.legend).range()


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _colour(mode: models.FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _words(words: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        options={
            value: models.ValueMappingResult(text=text, color=color)
            for value, (text, color) in words.items()
        }
    )
