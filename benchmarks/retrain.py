"""A retrain of the frozen encoder's head on ten thousand labels: from nothing, and from the cache.

    make bench BENCHMARKS=retrain      (needs the Banking77 folder; ARGS=--quick goes without)

The trainer's child runs as the learner starts it: reads the dataset, embeds what the cache does not
have, fits and calibrates, writes the student. Once with an empty cache, then again with the same
cache, and once more after a hundred new texts.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.loose_work import DATASET, ENCODER, loose_executor, write_training
from benchmarks.recipes.points import BANKING77, Query, read_queries
from benchmarks.results import write_results
from pipelines.recipes import RECIPES
from pipelines.students.encoder import installed_encoder_files
from pipelines.work import TrainWork
from service.demo.traffic import Traffic
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
        run = Path(name)
        for part in ("encoder", "scratch"):
            (run / part).mkdir()
        for file, (path, _) in installed_encoder_files().items():
            (run / "encoder" / file).symlink_to(path)
        write_training(run / "dataset", [(row.text, row.gold) for row in rows])
        limits = TrainerSettings(
            time_limit=timedelta(hours=1), heartbeat_timeout=timedelta(minutes=5), threads=threads
        )
        inputs = {DATASET: run / "dataset", ENCODER: run / "encoder"}
        executor = loose_executor(run, limits, inputs, _told, vectors=_cache(folder))
        started = time.monotonic()
        trained = executor.run(_work(rows), run / "scratch")
        seconds = time.monotonic() - started
    print(f"{len(rows):,} labels: {seconds:.1f} s", flush=True)
    return seconds, trained


def _told(progress: Mapping[str, Any]) -> None:
    if sys.stdout.isatty():
        print(f"\r{progress['phase']} {progress['step']}/{progress['total']}   ", end="")


def _work(rows: Sequence[Query]) -> TrainWork:
    """What the learner would tell the trainer."""
    return TrainWork(
        recipe=RECIPES["head"],
        task="benchmark",
        labels=tuple(sorted({row.gold for row in rows})),
        instructions="",
        seed=0,
        dataset=DATASET,
        encoder=ENCODER,
        max_tokens=128,
        base=ENCODER,
        base_name="",
    )


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
