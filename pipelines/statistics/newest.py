"""A certificate of now: on the newest evidence alone, where agreement is lower there.

A threshold is certified on two months of evidence, so that a fall of last week hardly shows in it.
Whether there was one is tested first, on draws in the order in which they came.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.certify import certify_threshold, items_needed
from pipelines.types import Threshold

# Shares of the draws, the newest ones, that are held against those before.
SHARES = (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16)
# With which probability any of them is taken for worse while nothing has changed. A false
# alarm costs evidence and breaks no promise, so it may be more frequent than a broken one.
LEVEL = 0.1


class Evidence(NamedTuple):
    """Items that a threshold is certified on; without weights each counts once."""

    confidences: Sequence[float]
    correct: Sequence[bool]
    weights: Sequence[float] | None = None


class Part(NamedTuple):
    """The evidence from a moment on, and how many draws came before it."""

    before: int
    evidence: Evidence
    since: datetime | None = None


def begins(draws: int) -> tuple[int, ...]:
    """How many draws lie before each part; none for a part without draws."""
    found = {draws - int(draws * share) for share in SHARES}
    return tuple(sorted(before for before in found if before < draws))


def certify_newest(
    whole: Evidence,
    draws: Evidence,
    parts: Sequence[Part],
    *,
    target: float,
    confidence_level: float,
) -> Threshold:
    """As `certify_threshold` on the whole, but on a part where agreement has fallen since then.

    `draws`: uniform draws of the traffic, oldest first. Of those above the threshold that the
    whole certifies, each part's are held against those before it by Fisher's exact test, one
    sided, at `LEVEL` over all parts (Bonferroni). While nothing changes the order of the draws
    is pure chance, given how often each confidence was right, and the threshold depends on that
    alone: so the level holds. Of the parts that are worse the one that shows it most clearly is
    certified anew, with the whole of alpha. Its threshold is never looser than before. A part with
    too few draws to certify anything, were all of them right, is not looked at: it could only
    take away, and a larger one has its draws as well.

    Certifying a second time does not double the error. Without a change a part is chosen only
    where it has more errors than the rest, so that what it certifies the whole did all the more;
    measured in `make bench-referee`, certificates_broken_iid.
    """
    found = certify_threshold(
        whole.confidences,
        whole.correct,
        target=target,
        confidence_level=confidence_level,
        weights=whole.weights,
    )
    part = _fallen(found, draws, parts)
    if part is None or found.value is None:
        return found
    again = certify_threshold(
        part.evidence.confidences,
        part.evidence.correct,
        target=target,
        confidence_level=confidence_level,
        weights=part.evidence.weights,
    )
    when = f" since {part.since:%Y-%m-%d %H:%M} UTC" if part.since else " lately"
    told = f" Agreement has been lower{when}; only the evidence from then on counts."
    if again.value is not None and again.value < found.value:
        again = replace(found, coverage=min(found.coverage, again.coverage))
    return replace(again, reason=again.reason + told)


def _fallen(found: Threshold, draws: Evidence, parts: Sequence[Part]) -> Part | None:
    """The part that is most clearly worse than what came before it; None: no fall is shown."""
    if found.value is None or not parts:
        return None
    above = np.asarray(draws.confidences, dtype=np.float64) >= found.value
    wrong = above & ~np.asarray(draws.correct, dtype=bool)
    chances = [
        as_many_by_chance(
            int(wrong[part.before :].sum()),
            int(above[part.before :].sum()),
            int(wrong.sum()),
            int(above.sum()),
        )
        for part in parts
    ]
    needed = items_needed(found.target, found.confidence_level)
    able = [
        (chance, part)
        for chance, part in zip(chances, parts, strict=True)
        if int(above[part.before :].sum()) >= needed
    ]
    if not able:
        return None
    chance, best = min(able, key=lambda one: one[0])
    return best if chance * len(parts) <= LEVEL else None


def as_many_by_chance(wrong: int, drawn: int, all_wrong: int, items: int) -> float:
    """P(X >= wrong), X the wrong ones among `drawn` of `items`, `all_wrong` of them wrong.

    The hypergeometric distribution, exact: the p-value of Fisher's test, one-sided.
    """
    highest = min(drawn, all_wrong)
    if wrong <= max(0, drawn + all_wrong - items):
        return 1.0
    if wrong > highest:
        return 0.0
    counts = np.arange(wrong, highest + 1)
    logs = (
        _log_choose(all_wrong, counts)
        + _log_choose(items - all_wrong, drawn - counts)
        - _log_choose(items, np.array([drawn]))
    )
    return min(1.0, float(np.exp(logs).sum()))


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.array([math.lgamma(n + 1) - math.lgamma(c + 1) - math.lgamma(n - c + 1) for c in k])
