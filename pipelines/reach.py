"""How far from its training data a student is trusted, and what its evidence showed where.

A student's confidence says little about prompts unlike all that it has seen: on topics that came
later it was wrong at a mean confidence of .66 to .84 (Banking77). The distance to the nearest
prototype of the label that it gives tells most of them apart (nearest-neighbour distance: Sun,
Ming, Zhu and Li, Out-of-distribution detection with deep nearest neighbors, ICML 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Where a prompt lies, seen from the training data: as the nearer half of the evidence, further
# out, or further than the evidence of what is promised.
Reach = Literal["near", "far", "beyond"]

# Of the held-out items that the student answers rightly, this share lies within the radius.
RADIUS_SHARE = 0.9
FEWEST_RIGHT = 30  # on fewer, nothing is within reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Held-out items by confidence bin, near the training data and far, and the right ones."""

    near: tuple[int, ...]
    near_right: tuple[int, ...]
    far: tuple[int, ...]
    far_right: tuple[int, ...]


def radius_of(distances: Sequence[float | None], correct: Sequence[bool]) -> float | None:
    """Beyond which distance nothing is trusted; None for a student that has no distances.

    0 where too few items are answered rightly for a radius to mean anything.
    """
    if not distances or any(distance is None for distance in distances):
        return None
    right = np.asarray(distances, dtype=np.float64)[np.asarray(correct, dtype=bool)]
    return float(np.quantile(right, RADIUS_SHARE)) if right.size >= FEWEST_RIGHT else 0.0


def within(
    confidences: Sequence[float], distances: Sequence[float | None], radius: float | None
) -> tuple[float, ...]:
    """The confidences; 0, which nothing is certified at, where an item lies beyond the radius."""
    if radius is None:
        return tuple(confidences)
    return tuple(
        0.0 if place(distance, None, radius) == "beyond" else confidence
        for confidence, distance in zip(confidences, distances, strict=True)
    )


def near_of(
    confidences: Sequence[float], distances: Sequence[float | None], threshold: float | None
) -> float | None:
    """The distance within which half of what lies above the threshold does."""
    known = [
        distance
        for confidence, distance in zip(confidences, distances, strict=False)
        if threshold is not None and confidence >= threshold and distance is not None
    ]
    return float(np.median(known)) if known else None


def place(distance: float | None, near: float | None, radius: float | None) -> Reach | None:
    """Where a prompt lies; None where its student has no prototypes."""
    if distance is None or radius is None:
        return None
    # Written so that a NaN is beyond.
    if not distance <= radius:
        return "beyond"
    return "near" if near is None or distance <= near else "far"
