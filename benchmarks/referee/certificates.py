"""Certified thresholds: how often is the promise broken above one?"""

from collections.abc import Iterator

import numpy as np

from benchmarks.referee.figures import Figure, share, tries
from benchmarks.referee.worlds import KINDS, Student
from pipelines.checks import GatePolicy, groups_needed
from pipelines.evaluate import CONFIDENCE
from pipelines.statistics.newest import Evidence, Part, begins, certify_newest
from pipelines.types import Threshold

TARGET = 0.97
TRUTH_ITEMS = 300_000


class _Truth:
    """True agreement above any threshold, from many items."""

    def __init__(self, student: Student) -> None:
        sorted_up = np.sort(student.confidences(np.random.default_rng(1), TRUTH_ITEMS))
        self._confidences = sorted_up
        self._right = student.right_share(sorted_up)[::-1].cumsum()[::-1]

    def above(self, threshold: float) -> float:
        first = int(np.searchsorted(self._confidences, threshold))
        count = self._confidences.size - first
        return float(self._right[first]) / count if count else 1.0


TRUTHS = dict[Student, _Truth]()


def broken(student: Student, found: Threshold) -> bool:
    """Is what lies above the certified threshold truly below the target?"""
    if found.value is None:
        return False
    truth = TRUTHS.get(student) or TRUTHS.setdefault(student, _Truth(student))
    return truth.above(found.value) < found.target


def certified(items: Evidence) -> Threshold:
    """As the program does it, with the items in the order in which they came."""
    parts = [
        Part(before, Evidence(items.confidences[before:], items.correct[before:]))
        for before in begins(len(items.correct))
    ]
    return certify_newest(items, items, parts, target=TARGET, confidence_level=CONFIDENCE)


def certificates_broken(name: str, items: int, count: int, seed: int) -> tuple[int, int, int]:
    """Broken, issued and tried, over all kinds of students, each with its share of the tries."""

    def one(generator: np.random.Generator) -> tuple[bool, bool]:
        student = KINDS[int(generator.integers(len(KINDS)))]
        confidences = student.confidences(generator, items)
        right = generator.random(items) < student.right_share(confidences)
        found = certified(Evidence(confidences.tolist(), right.tolist()))
        return broken(student, found), found.value is not None

    results = list(tries(name, count, (seed, 50, items), one))
    return sum(bad for bad, _ in results), sum(issued for _, issued in results), count


def certificates_broken_iid(count: int, seed: int, items: int = 1_000) -> Iterator[Figure]:
    """Of all tries, as the promise is made."""
    name = "certificates_broken_iid"
    bad, issued, tried = certificates_broken(name, items, count, seed)
    world = (
        f"{len(KINDS)} kinds of students, {items:,} items, {TARGET:.0%} promised at 95 %: the true "
        "agreement above the certified threshold is lower. Of all tries."
    )
    yield share(name, bad, tried, world, issued=issued)


def certificates_broken_issued_at_minimum(count: int, seed: int) -> Iterator[Figure]:
    """Of those that an operator gets to see, with as few items as the gate accepts."""
    name, items = (
        "certificates_broken_issued_at_minimum",
        groups_needed(GatePolicy().min_groups, TARGET),
    )
    bad, issued, tried = certificates_broken(name, items, count, seed)
    world = (
        f"The same with {items} items, the least that the gate accepts for this target. Of the "
        "certificates that were issued."
    )
    yield share(name, bad, issued, world, tried=tried)
