"""What it would take until something can be certified of a student that has no threshold."""

import math
from collections.abc import Sequence

from pipelines.statistics.certify import items_needed
from pipelines.statistics.intervals import binomial_at_most

SUREST = 3  # one item in so many: those that the student is surest of
FARTHEST = 100_000  # sure items; who would need more is too close to the target, or below


def items_until_certified(
    confidences: Sequence[float],
    correct: Sequence[bool],
    *,
    target: float,
    confidence_level: float = 0.95,
) -> int:
    """About how many held-out items it takes to certify the surest third of them at `target`.

    If it goes on disagreeing as often as on the surest third of these: the smallest number of
    items of which a third pass the exact binomial test. 0 where more items would not help,
    because that third disagrees too often. An extrapolation, not a promise.
    """
    surest = sorted(zip(confidences, correct, strict=True), key=lambda pair: -pair[0])
    surest = surest[: max(1, len(surest) // SUREST)]
    wrong_share = sum(not right for _, right in surest) / max(1, len(surest))
    needed = items_needed(target, confidence_level)
    while needed <= FARTHEST and wrong_share < 1.0 - target:
        wrong = math.ceil(needed * wrong_share)
        if binomial_at_most(wrong, needed, 1.0 - target) <= 1.0 - confidence_level:
            return SUREST * needed
        needed += 1 + needed // 50
    return 0
