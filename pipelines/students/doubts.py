"""Labels that the other examples speak against: what may be a slip of the teacher.

Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021, section 3.1): of each example the
probabilities come from a head that has not seen it. A label is doubtful where another one is at
least as likely as that other is, on average, for its own examples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.rows import TrainingRow

MOST_DOUBTS = 1_000  # of one training are named; all are counted


class Unseen(NamedTuple):
    """Rows of the data, and the logits (rows, labels) of a head that has not seen them."""

    rows: NDArray[np.int64]
    logits: NDArray[np.float64]


def label_noise(
    rows: Sequence[TrainingRow],
    targets: NDArray[np.int64],
    unseen: Sequence[Unseen],
    labels: Sequence[str],
    temperature: float,
) -> dict[str, Any]:
    """What a trainer says of its labels: how many were looked at, how many and which are doubtful.

    Of a doubt: the event, its label, the likelier one, and `margin`, how much likelier that is
    (a difference of probabilities). The largest margin first.
    """
    looked_at = np.concatenate([one.rows for one in unseen]) if unseen else np.zeros(0, np.int64)
    if not looked_at.size:
        return {"labels_looked_at": 0, "labels_doubtful": 0, "doubts": []}
    probabilities = softmax(np.concatenate([one.logits for one in unseen]) / temperature)
    given = targets[looked_at]
    likelier = confidently_other(probabilities, given)
    doubtful = np.flatnonzero(likelier >= 0)
    margins = probabilities[doubtful, likelier[doubtful]] - probabilities[doubtful, given[doubtful]]
    surest = doubtful[np.argsort(-margins, kind="stable")][:MOST_DOUBTS]
    margin = dict(zip(doubtful.tolist(), margins.tolist(), strict=True))
    return {
        "labels_looked_at": len(looked_at),
        "labels_doubtful": len(doubtful),
        "doubts": [
            {
                "event_id": rows[looked_at[at]].event_id,
                "label": labels[given[at]],
                "likelier": labels[likelier[at]],
                "margin": round(margin[at], 4),
            }
            for at in surest.tolist()
        ],
    }


def confidently_other(
    probabilities: NDArray[np.float64], given: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each row the label that it rather has than the one `given`; -1: none.

    `probabilities` is of shape (rows, labels). What a label has to reach is the mean of its
    probability over the rows that bear it; one that nobody bears is never likelier.
    """
    rows, labels = probabilities.shape
    bearers = np.bincount(given, minlength=labels)
    own = np.bincount(given, weights=probabilities[np.arange(rows), given], minlength=labels)
    needed = np.where(bearers, own / np.maximum(bearers, 1), np.inf)
    confident = np.where(probabilities >= needed, probabilities, -1.0)
    best = confident.argmax(axis=1)
    other = (confident[np.arange(rows), best] >= 0.0) & (best != given)
    return np.where(other, best, -1)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows that sum to 1."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
