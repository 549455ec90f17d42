"""Invented students: confidences from a beta distribution, and how often they are right."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

USUAL_SHAPE = 0.6  # most confidences near 1, as those of real students are


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """Confidences are Beta(a, shape) with the mean `agreement`.

    It is right with the probability that it says, pushed by slope and shift in logits, or by
    `too_sure` points downwards.
    """

    agreement: float
    shape: float = USUAL_SHAPE
    slope: float = 1.0
    shift: float = 0.0
    too_sure: float = 0.0

    def confidences(self, generator: np.random.Generator, count: int) -> NDArray[np.float64]:
        a = self.shape * self.agreement / (1.0 - self.agreement)
        return np.clip(generator.beta(a, self.shape, count), 1e-9, 1.0 - 1e-9)

    def right_share(self, confidences: NDArray[np.float64]) -> NDArray[np.float64]:
        """How probable it is that the teacher says the same."""
        logits = np.log(confidences / (1.0 - confidences))
        pushed = 1.0 / (1.0 + np.exp(-(self.slope * logits + self.shift)))
        return np.clip(pushed - self.too_sure, 0.0, 1.0)


# Calibrated, flatter than it says, steeper, too sure everywhere, too shy everywhere.
CALIBRATIONS = ((1.0, 0.0), (0.7, 0.0), (1.4, 0.0), (1.0, -0.5), (1.0, 0.5))
KINDS = tuple(
    Student(agreement=agreement, shape=shape, slope=slope, shift=shift)
    for agreement, shape, (slope, shift) in product(
        (0.82, 0.90, 0.95), (USUAL_SHAPE, 1.0), CALIBRATIONS
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Champion and candidate on the same items, both calibrated.

    They differ on a share `differ` of the items, and the candidate wins (differ + gain) / 2.
    """

    agreement: float  # the champion's
    differ: float
    gain: float
    champion_right: NDArray[np.bool_]
    champion_confidences: NDArray[np.float64]
    right: NDArray[np.bool_]
    confidences: NDArray[np.float64]

    @classmethod
    def drawn(
        cls,
        generator: np.random.Generator,
        items: int,
        *,
        agreement: float,
        differ: float,
        gain: float,
    ) -> "Pair":
        champion = generator.random(items) < agreement
        return cls(
            agreement=agreement,
            differ=differ,
            gain=gain,
            champion_right=champion,
            champion_confidences=_confidences_given(generator, champion, agreement),
            right=champion,
            confidences=np.zeros(items),
        ).tomorrow(generator, kept=0.0)

    def tomorrow(self, generator: np.random.Generator, *, kept: float) -> "Pair":
        """Another candidate, which has a share `kept` of this one's outcomes."""
        changed = generator.random(self.right.size) >= kept
        lose = (self.differ - self.gain) / 2.0 / self.agreement
        win = (self.differ + self.gain) / 2.0 / (1.0 - self.agreement)
        luck = generator.random(self.right.size)
        anew = np.where(self.champion_right, luck >= lose, luck < win)
        confidences = _confidences_given(generator, anew, self.agreement + self.gain)
        return replace(
            self,
            right=np.where(changed, anew, self.right),
            confidences=np.where(changed, confidences, self.confidences),
        )

    def first(self, items: int) -> "Pair":
        """The oldest items."""
        return replace(self, **{name: getattr(self, name)[:items] for name in ITEMWISE})

    def renewed(self, generator: np.random.Generator, items: int) -> "Pair":
        """So many of the oldest items have gone, and as many new ones have come."""
        new = Pair.drawn(
            generator, items, agreement=self.agreement, differ=self.differ, gain=self.gain
        )
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(self, name)[items:], getattr(new, name)])
            for name in ITEMWISE
        }
        return replace(self, **joined)


ITEMWISE = ("champion_right", "champion_confidences", "right", "confidences")


def _confidences_given(
    generator: np.random.Generator, right: NDArray[np.bool_], agreement: float
) -> NDArray[np.float64]:
    """Those of a calibrated student, given where it was right."""
    a = USUAL_SHAPE * agreement / (1.0 - agreement)
    sure = generator.beta(a + 1.0, USUAL_SHAPE, right.size)
    return np.where(right, sure, generator.beta(a, USUAL_SHAPE + 1.0, right.size))
