"""Draws accuracy against labels, a line a recipe, from the benchmark's results file."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

# Mid-tones, and no background: they can be read on a light page and on a dark one.
INK = "#7a7a7a"
COLOURS = {
    "head": "#3b82c4",
    "encoder-lora": "#2e9b63",
    "encoder-full": "#c2702a",
    "causal-lora": "#a65fc0",
}
SPREAD = 1.03  # of the recipes sideways, so that their bars do not cover each other
LABEL_GAP = 0.025  # at least so much accuracy between two names


def draw(found: Mapping[str, Any], target: Path) -> None:
    """Mean over the seeds, with a bar from the least to the most accurate of them."""
    import matplotlib

    matplotlib.use("Agg")
    # Words stay words, and the same figures give the same file.
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "recipes",
            "font.family": "sans-serif",
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    counts = sorted({point["labels"] for point in found["points"] if point["recipe"] in COLOURS})
    ends = {}
    for at, (recipe, colour) in enumerate(COLOURS.items()):
        lines = _by_labels(found, recipe)
        if not lines:
            continue
        shift = SPREAD ** (at - (len(COLOURS) - 1) / 2)
        x = [labels * shift for labels in lines]
        y = [fmean(values) for values in lines.values()]
        below = [mean - min(values) for mean, values in zip(y, lines.values(), strict=True)]
        above = [max(values) - mean for mean, values in zip(y, lines.values(), strict=True)]
        axes.errorbar(
            x, y, yerr=(below, above), color=colour, marker="o", ms=5, lw=2, capsize=3, elinewidth=1
        )
        ends[recipe] = (x[-1], y[-1])
    for recipe, (x_at, y_at) in _apart(ends).items():
        axes.annotate(
            recipe,
            (x_at, y_at),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[recipe],
            fontweight="bold",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(right=max(counts) * 1.75)
    axes.set_ylim(top=1.0)
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on test queries")
    axes.grid(axis="y", color=INK, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})


def _by_labels(found: Mapping[str, Any], recipe: str) -> dict[int, list[float]]:
    """The accuracies of the seeds, by number of labels, fewest first."""
    lines: dict[int, list[float]] = {}
    for point in sorted(found["points"], key=lambda point: int(point["labels"])):
        if point["recipe"] == recipe:
            lines.setdefault(point["labels"], []).append(point["accuracy"])
    return lines


def _apart(ends: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ends of the lines, moved upwards where two names would lie on each other."""
    placed: dict[str, tuple[float, float]] = {}
    for recipe, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        for other_x, other_y in placed.values():
            if abs(x / other_x - 1) < 0.5 and y < other_y + LABEL_GAP:
                y = other_y + LABEL_GAP
        placed[recipe] = (x, y)
    return placed
