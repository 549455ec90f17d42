"""Certificates of a window in which agreement fell: broken at issue, lost, and until when?"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.referee.figures import Figure, share, tries, waits
from benchmarks.referee.worlds import KINDS
from benchmarks.referee.zipf import (
    A_DAY,
    AUDIT_RATE,
    DATASET,
    KINDS_OF_TRAFFIC,
    TARGET,
    Traffic,
    certificates,
    kept,
)
from pipelines.statistics.detector import Detector
from pipelines.types import Threshold

SLIDE, SLIDING_DAYS = 0.03, 30
DROP, DAYS_AGO = 0.05, 5
DAYS_WATCHED = 60
DISTINCT, BY_TRAFFIC = range(2)
HOW = {
    BY_TRAFFIC: ("", "as the program certifies: each prompt by its share of the traffic"),
    DISTINCT: ("_distinct", "each near-duplicate group counted once"),
}


def slid() -> NDArray[np.float64]:
    """By how much agreement had fallen, day by day."""
    fall = np.zeros(DATASET.held_out_days)
    fall[-SLIDING_DAYS:] = np.linspace(0.0, SLIDE, SLIDING_DAYS)
    return fall


def dropped() -> NDArray[np.float64]:
    """The same, all at once."""
    fall = np.zeros(DATASET.held_out_days)
    fall[-DAYS_AGO:] = DROP
    return fall


def certificates_slide(count: int, seed: int) -> Iterator[Figure]:
    """Slowly, over the whole window."""
    world = f"Agreement slides by {100 * SLIDE:g} points in the {SLIDING_DAYS} days before"
    yield from _drifted("slide", world, slid(), count, (seed, 120))


def certificates_drop(count: int, seed: int) -> Iterator[Figure]:
    """Suddenly, shortly before."""
    world = f"Agreement fell by {100 * DROP:g} points {DAYS_AGO} days before"
    yield from _drifted("drop", world, dropped(), count, (seed, 130))


def _drifted(
    name: str, world: str, fall: NDArray[np.float64], count: int, seed: tuple[int, int]
) -> Iterator[Figure]:
    def one(generator: np.random.Generator) -> list[tuple[float, float, float]]:
        student = KINDS[int(generator.integers(len(KINDS)))]
        traffic = Traffic.drawn(generator, student, 0.8, KINDS_OF_TRAFFIC[0])
        found = certificates(generator, traffic, DATASET.held_out_days, fall)
        return [_outcome(generator, traffic, threshold, float(fall[-1])) for threshold in found]

    results = np.array(list(tries(f"certificates_{name}", count, seed, one)))
    for how, (suffix, words) in HOW.items():
        broken, issued, days = results[:, how].T
        about = f"{world} a certificate for {TARGET:.0%} is issued; {words}"
        yield share(
            f"certificates_{name}{suffix}",
            int(broken.sum()),
            count,
            f"{about}: the traffic of that day agrees less. Of all tries.",
            issued=float(issued.sum()),
            lost=float(1.0 - issued.mean()),
        )
        if broken.sum() > 1:
            yield waits(
                f"certificates_{name}_days{suffix}",
                days[broken > 0].tolist(),
                f"{about}, and broken: until the audits raise the alarm. At default rates, "
                f"{A_DAY:,} prompts a day; {DAYS_WATCHED} days stand for later or never.",
            )


def _outcome(
    generator: np.random.Generator, traffic: Traffic, found: Threshold, fallen: float
) -> tuple[float, float, float]:
    """Broken, issued, and days until the watch acts if it is broken."""
    broken, issued, _, _ = kept(traffic, found, fallen)
    if not broken or found.value is None:
        return broken, issued, math.nan
    true, covered = traffic.above(found.value, fallen)
    audits_a_day = A_DAY * AUDIT_RATE * covered
    detector = Detector(target=TARGET)
    for day in range(1, DAYS_WATCHED + 1):
        detector = detector.after_all(generator.random(generator.poisson(audits_a_day)) < true)
        if detector.alarmed(365 * audits_a_day):
            return broken, issued, float(day)
    return broken, issued, float(DAYS_WATCHED)
