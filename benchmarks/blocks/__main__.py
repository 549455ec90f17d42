"""Banking77 in ten blocks of seven or eight intents: topics that nobody has seen arrive in turn.

    make bench-blocks      (needs the Banking77 folder; about half an hour)

Training queries, shuffled within their block, one a second of virtual time, default settings but
for a target of 90 %, every promotable version approved, the teacher at hand. Once as it is, once
with labels and trainings switched off from the first student on.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.blocks.virtual import Prompt, Served, VirtualLearner, virtual_learner
from benchmarks.recipes.points import BANKING77, Query, read_queries
from benchmarks.results import write_results

TASK = "banking"
BLOCKS = 10
WINDOW = 500  # consecutive prompts
STEP = 10  # prompts between two looks at what is due
RECOVERED = 0.95  # of the trusted coverage before
PACE = timedelta(seconds=1)


def stream_of(queries: Sequence[Query], seed: int, blocks: int) -> tuple[list[Query], list[int]]:
    """The queries block by block, and the block of each."""
    dice = np.random.default_rng(seed)
    intents = dice.permutation(sorted({query.gold for query in queries}))
    ordered: list[Query] = []
    numbers: list[int] = []
    for number, part in enumerate(np.array_split(intents, blocks)):
        found = [query for query in queries if query.gold in set(part)]
        ordered += [found[at] for at in dice.permutation(len(found))]
        numbers += [number] * len(found)
    return ordered, numbers


def live_through(
    learner: VirtualLearner,
    prompts: Sequence[Prompt],
    *,
    stop_learning: bool,
) -> list[Served]:
    """One prompt a second; `stop_learning`: no label any more after the first student."""
    lived = []
    for number, prompt in enumerate(prompts):
        served = learner.capture(TASK, number, prompt)
        lived.append(served)
        if served.version and stop_learning:
            learner.stop_labels()
        if number % STEP == STEP - 1:
            learner.pass_time(PACE * STEP)
        if number % 500 == 499:
            alone = [one for one in lived[-500:] if one.alone]
            wrong = sum(not one.right for one in alone)
            print(
                f"{number + 1} prompts: of the last 500 the student answered {len(alone)} alone, "
                f"{wrong} of them wrongly; {learner.trainings} trainings",
                file=sys.stderr,
                flush=True,
            )
    return lived


def figures_of(lived: Sequence[Served], blocks: Sequence[int]) -> dict[str, float]:
    wrong = np.array([one.alone and not one.right for one in lived])
    alone = np.array([one.alone for one in lived])
    width = min(WINDOW, len(lived))
    worst = np.convolve(wrong, np.ones(width), "valid").max() / width
    recovered = labels_to_recover(alone, np.array(blocks))
    return {
        "wrong_served": round(float(wrong.mean()), 4),
        "wrong_served_worst_500": round(float(worst), 4),
        "wrong_of_served_alone": round(float(wrong.sum() / max(1, alone.sum())), 4),
        "teacher_share": round(float(1.0 - alone.mean()), 4),
        "labels_to_recover_median": round(float(median(recovered)), 1) if recovered else -1.0,
        "blocks_recovered": len(recovered),
    }


def labels_to_recover(alone: np.ndarray, blocks: np.ndarray) -> list[int]:
    """For each block but the first two: prompts that the teacher answered until the student is
    trusted with as much as in the second half of the block before (95 % of that share, over 100
    prompts). A block in which that does not happen is left out, and counted."""
    found = []
    for block in range(2, int(blocks.max()) + 1):
        before = alone[blocks == block - 1]
        goal = RECOVERED * before[len(before) // 2 :].mean()
        here = alone[blocks == block]
        trusted = np.convolve(here, np.ones(100) / 100, "valid")
        reached = np.flatnonzero(trusted >= goal)
        if reached.size:
            found.append(int((~here[: reached[0] + 100]).sum()))
    return found


def run(queries: Sequence[Query], seed: int, blocks: int, *, stop_learning: bool) -> dict[str, Any]:
    ordered, numbers = stream_of(queries, seed, blocks)
    labels = sorted({query.gold for query in ordered})
    with (
        tempfile.TemporaryDirectory(prefix="blocks-") as folder,
        virtual_learner(Path(folder), TASK, ordered, labels, target=0.9) as (learner, prompts),
    ):
        lived = live_through(learner, prompts, stop_learning=stop_learning)
        trainings = learner.trainings
    by_block = []
    for block in range(blocks):
        here = [one for one, number in zip(lived, numbers, strict=True) if number == block]
        alone = sum(one.alone for one in here)
        wrong = sum(one.alone and not one.right for one in here)
        by_block.append(
            {"alone": round(alone / len(here), 3), "wrong": round(wrong / len(here), 3)}
        )
    return {**figures_of(lived, numbers), "trainings": trainings, "blocks": by_block}


def main() -> None:
    """Run the benchmark and write `benchmarks/results/blocks.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-learning", action="store_true", help="only that run")
    chosen = parser.parse_args()
    if not BANKING77.is_dir():
        sys.exit("The Banking77 folder is not there; name it with BANKING77=FOLDER.")
    queries = read_queries("train.csv")
    started = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    for name, stop_learning in (("learning", False), ("without_labels", True)):
        if chosen.without_learning and not stop_learning:
            continue
        found[name] = run(queries, chosen.seed, BLOCKS, stop_learning=stop_learning)
        print(json.dumps({name: found[name]}), flush=True)
    if len(found) < 2:
        return
    figures = {k: v for k, v in found["learning"].items() if isinstance(v, int | float)}
    figures |= {
        f"{k}_without_labels": v
        for k, v in found["without_labels"].items()
        if k in ("wrong_served", "wrong_served_worst_500", "teacher_share")
    }
    path = write_results(
        "blocks",
        figures,
        seed=chosen.seed,
        minutes=round((time.monotonic() - started) / 60, 1),
        by_block={name: one["blocks"] for name, one in found.items()},
    )
    print(f"{path.name} was written")


if __name__ == "__main__":
    main()
