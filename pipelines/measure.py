"""How long a recipe would take on this machine: a batch is timed, in a process of its own.

python -m pipelines.measure SPEC.json
"""

import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.child import Channel, run_child
from pipelines.recipes import Recipe
from pipelines.rows import TrainingRow
from pipelines.students.bases import require_training_stack
from pipelines.students.encoder import Encoder
from pipelines.students.families import family_of
from pipelines.students.fit import CALIBRATION_FOLDS, Data, fit
from pipelines.train import CALIBRATION_SHARE, MAX_CALIBRATION_SHARE, MIN_CALIBRATION_ROWS
from pipelines.work import Host, MeasureFacts, MeasureWork, result

MESSAGE = (
    "please tell me where the parcel is that was sent last week because the number of it shows "
    "nothing and nobody answers when we call about a refund for the second invoice of my account"
)
TIMED_TEXTS = 128
FITTED_ROWS = 2_000  # of more, the time is extrapolated
FORWARD_SHARE = 1 / 3  # of a row's time in a step: the way back takes twice the way there


def measure(work: MeasureWork, host: Host, channel: Channel) -> dict[str, Any]:
    """Seconds of the training, and what was timed."""
    training, recipe = work.training, work.training.recipe
    if not recipe.tunes:
        return result(_measure_head(work, host, channel))
    require_training_stack()
    channel.progress("load", 0, 2)
    from pipelines.students.precision import Precision

    rows = synthetic_rows(max(TIMED_TEXTS, 2 * recipe.batch_size), training.labels)
    tuning = family_of(recipe).tuning(training, host, rows, [])
    channel.progress("load", 1, 2)
    precision = Precision.choose(tuning, recipe, Path(host.precision))
    channel.progress("load", 2, 2)
    return result(
        MeasureFacts(
            seconds=round(run_seconds(recipe, work.examples, precision.seconds), 1),
            timed=str(precision),
            tuned=tuning.description,
        )
    )


def run_seconds(recipe: Recipe, examples: int, batch_seconds: float) -> float:
    """A whole run: its batches, and what is read once more at the end."""
    share = min(max(CALIBRATION_SHARE, MIN_CALIBRATION_ROWS / examples), MAX_CALIBRATION_SHARE)
    calibration = share * examples
    batches = recipe.epochs * ceil((examples - calibration) / recipe.batch_size)
    read = family_of(recipe).reads_again(examples, calibration)
    return batch_seconds * (batches + FORWARD_SHARE * read / recipe.batch_size)


def synthetic_rows(count: int, labels: Sequence[str]) -> list[TrainingRow]:
    """Rows of 5 to 25 words: messages as long as those of a support desk."""
    rng, words = np.random.default_rng(0), MESSAGE.split()
    return [
        TrainingRow(
            event_id=str(at),
            text=" ".join(rng.choice(words, size=int(rng.integers(5, 26)))),
            label=labels[at % len(labels)],
            group_id=str(at),
        )
        for at in range(count)
    ]


def _measure_head(work: MeasureWork, host: Host, channel: Channel) -> MeasureFacts:
    channel.progress("embed", 0, 2)
    training, labels = work.training, work.training.labels
    encoder = Encoder(
        host.path(training.encoder), threads=host.threads, max_tokens=training.max_tokens
    )
    texts = [row.text for row in synthetic_rows(TIMED_TEXTS, labels)]
    encoder.encode(texts[:8])  # the first ones set up
    started = time.perf_counter()
    encoder.encode(texts)
    a_text = (time.perf_counter() - started) / len(texts)
    channel.progress("embed", 1, 2)
    fitted = min(work.examples, FITTED_ROWS)
    started = time.perf_counter()
    fit(_synthetic_data(fitted, len(labels), encoder.dimension), len(labels))
    a_fit = (time.perf_counter() - started) * work.examples / fitted
    channel.progress("embed", 2, 2)
    return MeasureFacts(
        seconds=round(a_text * work.examples + a_fit * (CALIBRATION_FOLDS + 1), 1),
        timed=f"{1 / a_text:,.0f} texts a second are embedded",
    )


def _synthetic_data(rows: int, labels: int, dimension: int) -> Data:
    """Unit vectors around one centre for each label, as an encoder's are."""
    rng = np.random.default_rng(0)
    targets = np.arange(rows) % labels
    vectors = rng.normal(size=(labels, dimension))[targets] + rng.normal(size=(rows, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Data(vectors.astype(np.float32), targets, np.ones(rows), np.arange(rows))


if __name__ == "__main__":
    run_child(MeasureWork, measure)
