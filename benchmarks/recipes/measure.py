"""Every recipe on real queries: accuracy, minutes, memory, size and latency against labels.

    make bench-recipes     (needs the training stack and the Banking77 folder)

Takes hours on two cores, so each point is written as it is done, and another call goes on with
what is missing. A student trains on the first N queries of a shuffle by seed, with their gold
labels, and answers the test queries; a chat model answers 500 of them, drawn by the same seed.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import structlog

from benchmarks.recipes.points import (
    BANKING77,
    BASE,
    CAUSAL_QUERIES,
    Case,
    Point,
    measure,
    sample,
    settings_of,
    unpack,
)
from benchmarks.results import RESULTS, ROOT, machine, write_results
from pipelines.recipes import RECIPE_NAMES
from pipelines.statistics.intervals import count_pairs, paired_difference
from pipelines.students.bases import require_training_stack

RESULT = RESULTS / "recipes.json"
PLOT = ROOT / "docs" / "images" / "recipes.svg"
ALPHA = 0.05
TEST_QUERIES = 3_080
# What tells most comes first, so that a run that is cut short has told it.
HEADS = (("head", 200), ("head", 800), ("head", 2_000))
ORDER = (
    ("encoder-lora", 2_000),
    ("encoder-full", 2_000),
    ("causal-lora", 800),
    (BASE, 0),
    ("encoder-lora", 800),
    ("encoder-full", 800),
    ("encoder-lora", 200),
    ("encoder-full", 200),
    ("causal-lora", 200),
)
SEEDS = (0, 1, 2)
LABELS = (200, 800, 2_000)
CLEAR = "\r\x1b[K"  # of a terminal's line
LINE_SECONDS = 15.0  # between lines of progress where there is no terminal


def cases(recipes: Sequence[str], labels: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """The chosen part of the benchmark, in the order in which it is measured."""
    every = [(*what, seed) for seed in SEEDS for what in HEADS]
    every += [(*what, seed) for seed in SEEDS for what in ORDER]
    return [
        Case(recipe, count, seed)
        for recipe, count, seed in every
        if recipe in recipes and seed in seeds and (count in labels or recipe == BASE)
    ]


def read_points(path: Path) -> list[Point]:
    """The points of an earlier call that are still good.

    Ends the program where they were measured on another machine.
    """
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found["machine"] != machine():
        sys.exit(
            f"{path.name} was measured on another machine, and times of two machines do not "
            f"compare; move it away to measure on this one: {path}"
        )
    fields = Point.__dataclass_fields__
    points = [Point(**{key: point[key] for key in fields}) for point in found["points"]]
    return [point for point in points if point.settings == settings_of(point.recipe)]


def write(points: Sequence[Point], path: Path) -> None:
    """All points with their differences to `head`, and the means over the seeds."""
    whole = cases((*RECIPE_NAMES, BASE), LABELS, SEEDS)
    order = {case: at for at, case in enumerate(whole)}
    points = sorted(points, key=lambda point: order.get(point.case, len(order)))
    done = {point.case for point in points}
    write_results(
        path.stem,
        dict(_figures(points)),
        seed=SEEDS[0],
        folder=path.parent,
        seeds=list(SEEDS),
        test_queries=TEST_QUERIES,
        sampled_queries=CAUSAL_QUERIES,
        about=(
            f"Banking77 with gold labels. head and encoder-* answer all {TEST_QUERIES:,} test "
            f"queries; causal-lora and {BASE} (the base model used directly) answer "
            f"{CAUSAL_QUERIES} of them, drawn by the point's seed. to_head and to_base are paired "
            "differences in accuracy on the same queries, with Tango's 95 % interval. minutes "
            "counts the whole training process, beside whatever else the machine did; "
            "processor_minutes is its own time on all cores. The latency is of one text at a time."
        ),
        missing=[list(case) for case in whole if case not in done],
        points=[
            {
                **asdict(point),
                "to_head": difference(point, Case("head", point.labels, point.seed), points),
                "to_base": difference(point, Case(BASE, 0, point.seed), points),
            }
            for point in points
        ],
    )


def difference(point: Point, other: Case, points: Sequence[Point]) -> dict[str, Any] | None:
    """Accuracy above the other's on the same queries; None where that is not measured."""
    rival = next((one for one in points if one.case == other), None)
    causal = point.recipe == "causal-lora"
    if rival is None or point.case == other or (other.recipe == BASE and not causal):
        return None
    mine = unpack(point.right, point.queries)
    theirs = unpack(rival.right, rival.queries)
    if rival.queries > point.queries:
        theirs = [theirs[at] for at in sample(point.recipe, point.seed, rival.queries)]
    found = paired_difference(count_pairs(mine, theirs), ALPHA)
    return {name: round(value, 4) for name, value in asdict(found).items()}


def _figures(points: Sequence[Point]) -> Iterator[tuple[str, float]]:
    for recipe, labels in dict.fromkeys((point.recipe, point.labels) for point in points):
        same = [point for point in points if (point.recipe, point.labels) == (recipe, labels)]
        key = f"{recipe}_{labels}"
        yield f"{key}_accuracy", round(fmean(point.accuracy for point in same), 4)
        minutes = fmean(point.processor_minutes for point in same)
        yield f"{key}_processor_minutes", round(minutes, 2)


class Line:
    """One line on standard error: which point, how far, how long still."""

    def __init__(self, at: int, left: Sequence[Case], points: Sequence[Point]) -> None:
        self._which = f"[{at + 1}/{len(left)}] {left[at]}"
        self._whole = _minutes_left(left[at:], points)
        self._started = time.monotonic()
        self._told = -LINE_SECONDS
        self._phase = ("", 0.0, 0)

    def __call__(self, progress: Mapping[str, Any]) -> None:
        now = time.monotonic()
        phase, step = progress["phase"], progress["step"]
        if phase != self._phase[0]:
            self._phase = (phase, now, step)
        _, since, first = self._phase
        on_terminal = sys.stderr.isatty()
        if now - self._told < (0.2 if on_terminal else LINE_SECONDS):
            return
        self._told = now
        rate = (step - first) / (now - since) if now > since else 0.0
        left = f", {(progress['total'] - step) / rate:.0f} s left" if rate else ""
        text = f"{self._which}: {phase} {step:,} of {progress['total']:,}{left}{self._all(now)}"
        print(
            f"\r{text}\x1b[K" if on_terminal else text,
            end="" if on_terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def _all(self, now: float) -> str:
        if self._whole is None:
            return ""
        return f"; all: about {max(1, self._whole - (now - self._started) / 60):.0f} min left"


def _minutes_left(left: Sequence[Case], points: Sequence[Point]) -> float | None:
    """From what points of the same recipe took, the nearest in labels; None: too early to say."""
    total = 0.0
    for case in left:
        same = [point for point in points if point.recipe == case.recipe]
        if not same:
            return None
        near = min(same, key=lambda point: abs(point.labels - case.labels))
        total += near.minutes_in_all * max(case.labels, 1) / max(near.labels, 1)
    return total


def run(wanted: Sequence[Case], path: Path, threads: int) -> None:
    """Measure what is missing, and write after each point."""
    points = read_points(path)
    done = {point.case for point in points}
    left = [case for case in wanted if case not in done]
    print(f"{len(wanted) - len(left)} of {len(wanted)} points are there already", file=sys.stderr)
    for at, case in enumerate(left):
        point = measure(case, threads, Line(at, left, points))
        points = [*read_points(path), point]  # another call may have written meanwhile
        write(points, path)
        print(
            f"{CLEAR if sys.stderr.isatty() else ''}{case}: accuracy {point.accuracy:.4f}, "
            f"{point.minutes:g} min, {point.peak_memory_mb:,} MB, {point.size_mb:g} MB published, "
            f"{point.latency_p50_ms:g} ms",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="""examples:
  make bench-recipes                                        everything that is missing
  make bench-recipes ARGS="--recipes head encoder-lora --seeds 0"
  make bench-recipes ARGS="--plot"                          only the plot, from the results

Stop it at any time: what is done is in benchmarks/results/recipes.json. A point is measured again
when its recipe's settings have changed, or when you remove it from the file.""",
    )
    names = (*RECIPE_NAMES, BASE)
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=names,
        default=names,
        help=f"only these; {BASE} is the base of causal-lora, used directly (default: all)",
    )
    parser.add_argument("--labels", nargs="+", type=int, choices=LABELS, default=LABELS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--threads", type=int, default=2, help="of every model (default: 2)")
    parser.add_argument("--plot", action="store_true", help="draw docs/images/recipes.svg instead")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and write `benchmarks/results/recipes.json`, or draw it."""
    chosen = _arguments()
    if chosen.plot:
        from benchmarks.recipes.plot import draw

        draw(json.loads(RESULT.read_text()), PLOT)
        print(PLOT.relative_to(ROOT))
        return
    if not BANKING77.is_dir():
        sys.exit("The Banking77 folder is not there; name it with BANKING77=FOLDER.")
    require_training_stack()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    run(cases(chosen.recipes, chosen.labels, chosen.seeds), RESULT, chosen.threads)
    print(RESULT.relative_to(ROOT))
