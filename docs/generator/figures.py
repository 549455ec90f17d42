"""Tables of what the benchmarks measured, as their results files have it."""

import json
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from generator.places import ROOT


def loop_figures() -> Iterator[str]:
    """The loop benchmark's table, as its results file has it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "loop.json").read_text())
    yield "| version | labels bought | trained on | accuracy | trusted coverage at approval |"
    yield "|---|---:|---:|---:|---:|"
    for point in found["points"]:
        number = point["version"].split("-")[-2]
        yield (
            f"| {number} | {point['labels_bought']:,} | {point['labels_trained']:,} | "
            f"{point['accuracy']:.1%} | {point['coverage']:.0%} |"
        )
    yield ""
    yield (
        f"{found['prompts']:,} prompts, seed {found['seed']}, {found['machine']['cores']} cores, "
        f"{found['figures']['minutes']:g} minutes for the whole run: benchmarks/results/loop.json."
    )


def recipe_figures() -> Iterator[str]:
    """The recipes' table, a line for each number of labels, as the results file has it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())
    yield (
        "| recipe | labels | accuracy | above `head`, for each seed (95 % interval) "
        "| processor minutes | peak MB | published MB | ms |"
    )
    yield "|---|---:|---:|---|---:|---:|---:|---:|"
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for point in found["points"]:
        groups.setdefault((point["recipe"], point["labels"]), []).append(point)
    order = list(dict.fromkeys(recipe for recipe, _ in groups))
    for recipe, labels in sorted(groups, key=lambda key: (order.index(key[0]), key[1])):
        yield _recipe_row(recipe, labels, groups[recipe, labels])
    machine, seeds = found["machine"], ", ".join(map(str, found["seeds"]))
    yield ""
    yield (
        f"Means over the seeds {seeds} where they are measured; {machine['cores']} cores "
        f"({machine['processor']}, shared with other work): benchmarks/results/recipes.json."
    )
    missing: dict[str, list[str]] = {}
    for name, labels, seed in found["missing"]:
        missing.setdefault(f"{name} {labels:,}", []).append(str(seed))
    if missing:
        parts = (f"{what} (seed {', '.join(which)})" for what, which in missing.items())
        yield f"Not measured yet: {'; '.join(parts)}."


def _recipe_row(recipe: str, labels: int, points: list[dict[str, Any]]) -> str:
    def mean(name: str) -> float:
        return fmean(point[name] for point in points)

    above = [
        f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        for point in points
        if (gain := point["to_head"])
    ]
    cost = "| | | "  # of the chat model used directly: nothing was trained
    if points[0]["trained"]:
        cost = (
            f"| {mean('processor_minutes'):.1f} | {mean('peak_memory_mb'):,.0f} "
            f"| {mean('size_mb'):,.1f}"
        )
    return (
        f"| {recipe} | {labels:,} | {mean('accuracy'):.1%} | {'; '.join(above)} "
        f"{cost} | {mean('latency_p50_ms'):,.0f} |"
    )
