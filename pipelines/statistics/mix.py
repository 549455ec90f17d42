"""Is the traffic still what the evidence was about? Watched without a single label.

The certificate of a threshold speaks of prompts like the held-out ones. The traffic is compared
with them by where its prompts lie: half of the evidence above a threshold is near the training
data. When far more of the traffic is far, what is too much there is of a kind that nobody has seen
the student answer, and is taken to be wrong.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.reach import Reach, Shown
from pipelines.statistics.coverage import CONFIDENCE_BINS, CONFIDENCE_EDGES, confidence_bins

# Events of the traffic that are looked at: the newest. More would notice later, fewer too little.
WINDOW = 100
FEWEST_TRUSTED = 20
FEWEST_SHOWN = 30
# Standard deviations of chance that a surplus of far prompts is granted.
GRANTED = 2.5
SURELY = 5.0

Counts = NDArray[np.int64]


def shown_by(
    confidences: Sequence[float], places: Sequence[Reach | None], correct: Sequence[bool]
) -> Shown:
    """What the evidence showed: counts by confidence bin of the items within the radius."""
    bins = confidence_bins(confidences)
    right = np.asarray(correct, dtype=bool)
    far = np.array([one == "far" for one in places], dtype=bool)
    near = np.array([one not in ("far", "beyond") for one in places], dtype=bool)

    def count(chosen: NDArray[np.bool_]) -> tuple[int, ...]:
        return tuple(np.bincount(bins[chosen], minlength=CONFIDENCE_BINS).tolist())

    return Shown(
        near=count(near),
        near_right=count(near & right),
        far=count(far),
        far_right=count(far & right),
    )


def predicted_agreement(near: int, far: int, shown: Sequence[int]) -> float:
    """Predicted agreement of `near + far` events of the traffic above some threshold.

    `shown`: the evidence above it: near, right ones near, far, right ones far. Far events beyond
    what goes with the near ones in the evidence, and beyond chance, count as wrong.
    """
    shown_near, near_right, shown_far, far_right = shown
    odds = shown_far / max(shown_near, 1)
    share = shown_far / (shown_near + shown_far)
    # Of both samples: much traffic does not make up for little evidence.
    both = (near + far) * (1.0 + (near + far) / (shown_near + shown_far))
    chance = math.sqrt(both * share * (1.0 - share)) * (1.0 + odds)
    expected = near * odds + GRANTED * chance
    right = near * near_right / max(shown_near, 1)
    right += min(float(far), expected) * far_right / max(shown_far, 1)
    return right / max(near + far, 1)


def threshold_for_mix(
    near: Sequence[int], far: Sequence[int], shown: Shown, threshold: float, target: float
) -> float | None:
    """The loosest threshold, from `threshold` up, that the newest traffic's mix lets stand.

    `near` and `far`: events of the traffic by confidence bin. None: at no threshold is the mix
    what the evidence was about, or is there enough of either to say so. With too little traffic
    above `threshold` itself it stands. An edge falls only where the mix predicts less agreement
    than the evidence above that edge showed and than the target: a threshold that was certified
    just so is not raised by a mix that is as it was.
    """
    live = (_above(near), _above(far))
    evidence = tuple(map(_above, (shown.near, shown.near_right, shown.far, shown.far_right)))
    start = CONFIDENCE_EDGES.index(threshold)
    if live[0][start] + live[1][start] < FEWEST_TRUSTED:
        return threshold
    for edge in range(start, CONFIDENCE_BINS):
        of_traffic = int(live[0][edge]), int(live[1][edge])
        of_evidence = [int(counts[edge]) for counts in evidence]
        items = of_evidence[0] + of_evidence[2]
        if sum(of_traffic) < FEWEST_TRUSTED or items < FEWEST_SHOWN:
            return None
        showed = (of_evidence[1] + of_evidence[3]) / items
        if predicted_agreement(*of_traffic, of_evidence) >= min(target, showed) - 1e-9:
            return CONFIDENCE_EDGES[edge]
    return None


def many_are_beyond(novel: int, events: int, evidence_beyond: int, evidence: int) -> bool:
    """Whether surely more of the traffic is beyond the student's reach than of the evidence was.

    By `SURELY` standard deviations of both samples together: it is looked at all day.
    """
    if not events or not evidence:
        return False
    pooled = (novel + evidence_beyond) / (events + evidence)
    chance = math.sqrt(pooled * (1.0 - pooled) * (1.0 / events + 1.0 / evidence))
    return novel / events - evidence_beyond / evidence > SURELY * chance


def _above(counts: Sequence[int]) -> Counts:
    """For each edge: how many lie at or above it."""
    above: Counts = np.asarray(counts, dtype=np.int64)[::-1].cumsum()[::-1]
    return above
