"""A retrain of the frozen encoder's head on ten thousand labels: from nothing, and from the cache.

    make bench BENCHMARKS=retrain      (needs the Banking77 folder; ARGS=--quick goes without)

The trainer's child runs as the learner starts it: reads the dataset, embeds what the cache does not
have, fits and calibrates, writes the student. Once with an empty cache, then again with the same
cache, and once more after a hundred new texts.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.recipe_points import BANKING77, Query, read_queries
from benchmarks.results import write_results
from pipelines.recipes import RECIPES
from pipelines.students.encoder import installed_encoder_files
from service.demo.traffic import Traffic
from service.learner.trainer import Trainer
from service.sections import TrainerSettings

NEW_TEXTS = 100  # of the last training


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many labels there are, and how often each figure is taken."""

    labels: int = 10_000
    cached_rounds: int = 3
    grow: bool = True
    seed: int = 0


QUICK = Plan(labels=40, cached_rounds=1, grow=False)


def run(plan: Plan, rows: Sequence[Query], folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures, and what was trained. `rows` has some more than the plan asks for."""
    threads = os.cpu_count() or 1
    first, more = rows[: plan.labels], rows[: plan.labels + NEW_TEXTS]
    cold, trained = _train(folder, first, threads)
    cached = [_train(folder, first, threads)[0] for _ in range(plan.cached_rounds)]
    figures = {
        "cold_s": round(cold, 1),
        "cached_s": round(sorted(cached)[len(cached) // 2], 1),
    }
    if plan.grow:
        figures["grown_s"] = round(_train(folder, more, threads)[0], 1)
    about = {
        "labels": len(first),
        "classes": len({row.gold for row in first}),
        "new_texts": len(more) - len(first),
        "threads": threads,
        "cache_mb": round(sum(f.stat().st_size for f in _cache(folder).iterdir()) / 1e6, 1),
        "trained": trained,
    }
    return figures, about


def _train(folder: Path, rows: Sequence[Query], threads: int) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of the child to its end, and what it reports."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        spec = _spec(folder, Path(name), rows, threads)
        limits = TrainerSettings(
            time_limit=timedelta(hours=1), heartbeat_timeout=timedelta(minutes=5), threads=threads
        )
        started = time.monotonic()
        trained = Trainer(limits, _told).run("pipelines.train", spec, Path(spec["scratch"]))
        seconds = time.monotonic() - started
    print(f"{len(rows):,} labels: {seconds:.1f} s", flush=True)
    return seconds, trained


def _told(progress: Mapping[str, Any]) -> None:
    if sys.stdout.isatty():
        print(f"\r{progress['phase']} {progress['step']}/{progress['total']}   ", end="")


def _spec(folder: Path, run: Path, rows: Sequence[Query], threads: int) -> dict[str, Any]:
    """What the learner would tell the trainer."""
    for name in ("encoder", "dataset", "scratch"):
        (run / name).mkdir()
    for name, (path, _) in installed_encoder_files().items():
        (run / "encoder" / name).symlink_to(path)
    with (run / "dataset" / "train.jsonl").open("w", encoding="utf-8") as file:
        for at, row in enumerate(rows):
            line = {"text": row.text, "label": row.gold, "weight": 1.0, "group_id": str(at)}
            file.write(json.dumps(line) + "\n")
    return {
        "recipe": asdict(RECIPES["head"]),
        "dataset": str(run / "dataset"),
        "scratch": str(run / "scratch"),
        "labels": sorted({row.gold for row in rows}),
        "seed": 0,
        "threads": threads,
        "task": "benchmark",
        "instructions": "",
        "encoder": str(run / "encoder"),
        "encoder_digest": "benchmark",
        "max_tokens": 128,
        "cache": str(_cache(folder)),
    }


def _cache(folder: Path) -> Path:
    return folder / "vectors"


def banking77(plan: Plan) -> list[Query]:
    """The training queries, shuffled, and from the test queries what lacks to the number."""
    if not BANKING77.is_dir():
        sys.exit("The Banking77 folder is not there; name it with BANKING77=FOLDER.")
    rows = read_queries("train.csv") + read_queries("test.csv")
    random.Random(plan.seed).shuffle(rows)
    return rows


def invented(plan: Plan) -> list[Query]:
    """Messages of the demonstration's customers."""
    traffic = Traffic(plan.seed)
    found = (traffic.message(at, new_intent_share=0.0) for at in range(plan.labels + NEW_TEXTS))
    return [Query(one.text, one.intent) for one in found]


def main() -> None:
    """Run the benchmark and write `benchmarks/results/retrain.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes no results")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    plan = replace(QUICK if chosen.quick else Plan(), seed=chosen.seed)
    rows = invented(plan) if chosen.quick else banking77(plan)
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        figures, about = run(plan, rows, Path(folder))
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not chosen.quick:
        write_results("retrain", figures, seed=plan.seed, **about)


if __name__ == "__main__":
    main()
