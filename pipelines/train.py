"""Dataset directory to student directory, in a process of its own. Reads from top to bottom.

    python -m pipelines.train SPEC.json

`head` needs no gradients and is fitted in `pipelines.students.fit`. Everything else is tuned here:
load, announce, data, loop, save. What differs between an encoder and a chat model is in
`pipelines.students`; the loop does not know which of them it trains.
"""

import sys
import time
from collections.abc import Sequence
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.child import Channel, read_lines, run_child
from pipelines.errors import TrainingFailed
from pipelines.recipes import Recipe, require_training_stack
from pipelines.students.families import Batch, Tuning
from pipelines.students.fit import describe, missing_labels, refuse_one_label, train_head

Row = dict[str, Any]

CHECKPOINT_SECONDS = 20.0
WARM_UP = 0.1  # of the steps
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# Calibration sees no example that was tuned on: a share of the groups, but enough to count.
CALIBRATION_SHARE = 0.1
MIN_CALIBRATION_ROWS = 40
MAX_CALIBRATION_SHARE = 0.25
CURVE_POINTS = 100


def train(spec: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Train one student into `spec["scratch"]`; returns what the manifest should say."""
    recipe = Recipe(**spec["recipe"])
    if not recipe.tunes:
        return train_head(spec, channel)
    require_training_stack()
    try:
        return tune(spec, recipe, channel)
    except (MemoryError, RuntimeError) as error:  # torch has no error of its own for a CPU
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise TrainingFailed(
                f"out of memory: a smaller recipes.{recipe.name}.batch_size with a larger "
                "accumulate needs less"
            ) from error
        raise


def tune(spec: dict[str, Any], recipe: Recipe, channel: Channel) -> dict[str, Any]:
    """Tune a base model by gradient descent."""
    # Load.
    channel.progress("load", 0, 1)
    rows, labels = read_lines(Path(spec["dataset"]) / "train.jsonl"), spec["labels"]
    refuse_one_label(rows)
    training, calibration = split(rows, spec["seed"])
    tuning = load(spec, recipe, training, calibration)
    channel.progress("load", 1, 1)

    # Announce.
    from pipelines.students.precision import Precision

    precision = Precision.choose(tuning, recipe, Path(spec["precision"]))
    tuned = sum(parameter.numel() for parameter in tuning.parameters().values())
    announcement = (
        f"{recipe.name}: {describe(rows, labels)}, {len(calibration)} of them to calibrate; "
        f"{tuning.description}; {tuned:,} weights tuned, rate {recipe.learning_rate:g}, "
        f"batch {recipe.batch_size} x {recipe.accumulate}, seed {spec['seed']}; {precision}"
    )
    print(announcement, file=sys.stderr)
    channel.announce(announcement)

    # Data.
    plan = plan_steps(tuning.lengths, recipe, spec["seed"])
    if spec["time_budget"] is not None:
        affordable = spec["time_budget"] / (precision.seconds * recipe.accumulate)
        plan = plan[: max(1, int(affordable))]
    examples = sum(len(batch) for step in plan for batch in step)

    # Loop.
    import torch

    from pipelines.students.checkpoint import Checkpoint

    parameters = tuning.parameters()
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    checkpoint = Checkpoint(Path(spec["checkpoint"]), parameters, optimizer)
    losses = checkpoint.restore(precision.name)
    resumed_at, saved_at = len(losses), time.monotonic()
    done = sum(len(batch) for step in plan[:resumed_at] for batch in step)
    for number, step in enumerate(plan[resumed_at:], start=resumed_at):
        torch.manual_seed(spec["seed"] * 1_000_003 + number)  # a resumed run draws the same
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(number, len(plan))
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in step:
            with precision.autocast():
                part = tuning.loss(batch) / len(step)
            torch.autograd.backward(part)
            loss += float(part.detach())
        if not isfinite(loss):
            raise TrainingFailed(
                f"the loss is {loss} in step {number + 1} of {len(plan)}; a lower "
                f"recipes.{recipe.name}.learning_rate may help"
            )
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT_NORM)
        optimizer.step()
        losses.append(loss)
        done += sum(map(len, step))
        channel.progress("tune", done, examples, loss=round(loss, 4))
        if time.monotonic() - saved_at > spec.get("checkpoint_seconds", CHECKPOINT_SECONDS):
            checkpoint.save(losses, precision.name)
            saved_at = time.monotonic()

    # Save.
    about = tuning.save(Path(spec["scratch"]), channel)
    return {
        "examples": len(rows),
        "calibration_examples": len(calibration),
        "labels_without_example": missing_labels(rows, labels),
        "seed": spec["seed"],
        "steps": len(plan),
        "epochs": round(examples / len(training), 2),
        "weights_tuned": tuned,
        "precision": str(precision),
        "resumed_at_step": resumed_at,
        "loss_curve": loss_curve(losses),
        "reproducible": why_not_reproducible(spec, precision.device) or "yes",
        **about,
    }


def load(
    spec: dict[str, Any], recipe: Recipe, training: Sequence[Row], calibration: Sequence[Row]
) -> Tuning:
    """The base model that this recipe tunes."""
    if recipe.family == "causal":
        from pipelines.students.causal_tuning import CausalTuning

        return CausalTuning(spec, recipe, training, calibration)
    from pipelines.students.encoder_tuning import EncoderTuning

    return EncoderTuning(spec, recipe, training, calibration)


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Training and calibration rows. A near-duplicate group is never on both sides."""
    share = max(CALIBRATION_SHARE, MIN_CALIBRATION_ROWS / len(rows))
    wanted = min(share, MAX_CALIBRATION_SHARE) * len(rows)
    groups = sorted({row["group_id"] for row in rows})
    chosen: set[str] = set()
    sizes = dict.fromkeys(groups, 0)
    for row in rows:
        sizes[row["group_id"]] += 1
    taken = 0
    for at in np.random.default_rng(seed).permutation(len(groups)):
        if taken >= wanted:
            break
        chosen.add(groups[at])
        taken += sizes[groups[at]]
    training = [row for row in rows if row["group_id"] not in chosen]
    if len({row["label"] for row in training}) < 2:  # too few groups to spare any
        return list(rows), []
    return training, [row for row in rows if row["group_id"] in chosen]


def plan_steps(lengths: Sequence[int], recipe: Recipe, seed: int) -> list[tuple[Batch, ...]]:
    """The rows of each step of the optimizer, for the whole run.

    Rows of similar length share a batch, so that little of it is padding: each epoch is
    shuffled, sorted within windows of many batches, and its batches are shuffled again.
    """
    batches: list[Batch] = []
    size = recipe.batch_size
    rng = np.random.default_rng(seed)
    while len(batches) < recipe.epochs * len(lengths) / size:
        order = rng.permutation(len(lengths))
        window = 20 * size
        by_length = [
            row
            for start in range(0, len(order), window)
            for row in sorted(order[start : start + window], key=lambda row: lengths[row])
        ]
        epoch = [tuple(map(int, by_length[at : at + size])) for at in range(0, len(order), size)]
        batches += [epoch[at] for at in rng.permutation(len(epoch))]
    batches = batches[: max(1, round(recipe.epochs * -(-len(lengths) // size)))]
    return [
        tuple(batches[at : at + recipe.accumulate])
        for at in range(0, len(batches), recipe.accumulate)
    ]


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine, as a share of the peak rate (Loshchilov, 2017)."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + cos(pi * (step - warm_up) / max(1, steps - warm_up)))


def loss_curve(losses: Sequence[float]) -> list[tuple[int, float]]:
    """At most `CURVE_POINTS` pairs of step (from 1) and mean loss of the steps up to it."""
    width = max(1, -(-len(losses) // CURVE_POINTS))
    parts = [losses[at : at + width] for at in range(0, len(losses), width)]
    return [
        (at * width + len(part), round(sum(part) / len(part), 4)) for at, part in enumerate(parts)
    ]


def why_not_reproducible(spec: dict[str, Any], device: str) -> str | None:
    """Why another run on this dataset may give other weights; None: it gives the same."""
    if spec["time_budget"] is not None:
        return "no: the time budget decides the number of steps"
    if device != "cpu":
        return f"no: sums on {device} have no fixed order"
    return None


if __name__ == "__main__":
    run_child(train)
