"""Dataset directory to student directory, in a process of its own. Reads from top to bottom.

    python -m pipelines.train SPEC.json

What needs no gradients is fitted by its family. Everything else is tuned here: load, announce,
data, loop, save. What differs between an encoder and a chat model is in `pipelines.students`; the
loop does not know which of them it trains.
"""

import sys
import time
from collections.abc import Sequence
from math import cos, isfinite, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.child import Channel, run_child
from pipelines.errors import FlywheelError, TrainingFailed
from pipelines.recipes import Recipe
from pipelines.rows import TrainingRow, read_training
from pipelines.students.bases import require_training_stack
from pipelines.students.families import Batch, Tuning, family_of
from pipelines.students.fit import (
    describe,
    missing_labels,
    noise_by_encoder,
    refuse_one_label,
)
from pipelines.work import Host, TrainWork

if TYPE_CHECKING:
    from pipelines.students.precision import Precision

Step = tuple[Batch, ...]  # of the optimizer

WARM_UP = 0.1  # of the steps
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# Calibration sees no example that was tuned on: a share of the groups, but enough to count.
CALIBRATION_SHARE = 0.1
MIN_CALIBRATION_ROWS = 40
MAX_CALIBRATION_SHARE = 0.25
CURVE_POINTS = 100


def train(work: TrainWork, host: Host, channel: Channel) -> dict[str, Any]:
    """Train one student into the scratch folder; returns what the manifest should say."""
    if not work.recipe.tunes:
        fit = family_of(work.recipe).fit
        if fit is None:
            raise TrainingFailed(f"{work.recipe.name} tunes nothing: its epochs must be over 0")
        return fit(work, host, channel)
    require_training_stack()
    try:
        return tune(work, host, channel)
    except (MemoryError, RuntimeError) as error:  # torch has no error of its own for a CPU
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise TrainingFailed(
                f"out of memory: a smaller recipes.{work.recipe.name}.batch_size with a larger "
                "accumulate needs less"
            ) from error
        raise


def tune(work: TrainWork, host: Host, channel: Channel) -> dict[str, Any]:
    """Tune a base model by gradient descent."""
    # Load.
    channel.progress("load", 0, 1)
    rows, recipe = read_training(host.path(work.dataset)), work.recipe
    refuse_one_label(rows)
    training, calibration = split(rows, work.seed)
    tuning = family_of(recipe).tuning(work, host, training, calibration)
    channel.progress("load", 1, 1)

    # Announce.
    from pipelines.students.precision import Precision

    precision = Precision.choose(tuning, recipe, Path(host.precision))
    tuned = sum(parameter.numel() for parameter in tuning.parameters().values())
    announcement = (
        f"{recipe.name}: {describe(rows, work.labels)}, {len(calibration)} of them to calibrate; "
        f"{tuning.description}; {tuned:,} weights tuned, rate {recipe.learning_rate:g}, "
        f"batch {recipe.batch_size} x {recipe.accumulate}, seed {work.seed}; {precision}"
    )
    print(announcement, file=sys.stderr)
    channel.announce(announcement)

    # Data.
    plan = plan_steps(tuning.lengths, recipe, work.seed)
    if work.time_budget is not None:
        affordable = work.time_budget / (precision.seconds * recipe.accumulate)
        plan = plan[: max(1, int(affordable))]

    # Loop.
    losses, resumed_at = descend(work, host, tuning, precision, plan, channel)

    # Save.
    about = tuning.save(Path(host.scratch), channel)
    examples = sum(len(batch) for step in plan for batch in step)
    return {
        "examples": len(rows),
        "calibration_examples": len(calibration),
        "labels_without_example": missing_labels(rows, work.labels),
        "seed": work.seed,
        "steps": len(plan),
        "epochs": round(examples / len(training), 2),
        "weights_tuned": tuned,
        "precision": str(precision),
        "resumed_at_step": resumed_at,
        "loss_curve": loss_curve(losses),
        "reproducible": why_not_reproducible(work, precision.device) or "yes",
        **about,
        **_label_noise(rows, work, host, channel),
    }


def _label_noise(
    rows: Sequence[TrainingRow], work: TrainWork, host: Host, channel: Channel
) -> dict[str, Any]:
    """Nothing where it cannot be had: hours of tuning are not lost for a second opinion."""
    try:
        return noise_by_encoder(rows, work, host, channel)
    except FlywheelError as error:
        print(f"the labels were not looked at: {error}", file=sys.stderr)
        return {}


def descend(
    work: TrainWork,
    host: Host,
    tuning: Tuning,
    precision: "Precision",
    plan: Sequence[Step],
    channel: Channel,
) -> tuple[list[float], int]:
    """The loop: the loss of each step, and at which step a checkpoint was taken up."""
    import torch

    from pipelines.students.checkpoint import Checkpoint

    recipe, parameters = work.recipe, tuning.parameters()
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    checkpoint = Checkpoint(Path(host.checkpoint), parameters, optimizer)
    losses = checkpoint.restore(precision.name)
    resumed_at, saved_at = len(losses), time.monotonic()
    examples = sum(len(batch) for step in plan for batch in step)
    done = sum(len(batch) for step in plan[:resumed_at] for batch in step)
    for number, step in enumerate(plan[resumed_at:], start=resumed_at):
        torch.manual_seed(work.seed * 1_000_003 + number)  # a resumed run draws the same
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
        if time.monotonic() - saved_at > work.checkpoint_seconds:
            checkpoint.save(losses, precision.name)
            saved_at = time.monotonic()
    return losses, resumed_at


def split(rows: Sequence[TrainingRow], seed: int) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Training and calibration rows. A near-duplicate group is never on both sides."""
    share = max(CALIBRATION_SHARE, MIN_CALIBRATION_ROWS / len(rows))
    wanted = min(share, MAX_CALIBRATION_SHARE) * len(rows)
    groups = sorted({row.group_id for row in rows})
    chosen: set[str] = set()
    sizes = dict.fromkeys(groups, 0)
    for row in rows:
        sizes[row.group_id] += 1
    taken = 0
    for at in np.random.default_rng(seed).permutation(len(groups)):
        if taken >= wanted:
            break
        chosen.add(groups[at])
        taken += sizes[groups[at]]
    training = [row for row in rows if row.group_id not in chosen]
    if len({row.label for row in training}) < 2:  # too few groups to spare any
        return list(rows), []
    return training, [row for row in rows if row.group_id in chosen]


def plan_steps(lengths: Sequence[int], recipe: Recipe, seed: int) -> list[Step]:
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


def why_not_reproducible(work: TrainWork, device: str) -> str | None:
    """Why another run on this dataset may give other weights; None: it gives the same."""
    if work.time_budget is not None:
        return "no: the time budget decides the number of steps"
    if device != "cpu":
        return f"no: sums on {device} have no fixed order"
    return None


if __name__ == "__main__":
    run_child(TrainWork, train)
