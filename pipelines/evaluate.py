"""Candidate, champion and rivals on one held-out snapshot: agreement, slices, flips, threshold.

Nothing here decides. `pipelines.gate` judges what this module counts.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from pipelines.identities import snapshot_hash
from pipelines.marks import NO_COURSE, Course, Marked, asked_of, mark
from pipelines.pairs import Flip
from pipelines.pool import PoolPart, added
from pipelines.reach import Shown, near_of, place, within
from pipelines.statistics.calibration import calibration_error
from pipelines.statistics.certify import coverage_gain_p
from pipelines.statistics.intervals import count_pairs, exact_share, paired_difference, wilson_share
from pipelines.statistics.mix import shown_by
from pipelines.statistics.newest import certify_newest
from pipelines.statistics.outlook import items_until_certified
from pipelines.types import (
    Answers,
    Estimate,
    Evaluation,
    HeldOutItem,
    PairCounts,
    Slice,
    Threshold,
)

CANDIDATE = "candidate"
CHAMPION = "champion"
BASE = "base"
MAJORITY = "majority"
NEAREST = "nearest"
SIBLING = "sibling"  # the task's own recipe on the same labels, for a challenger

CONFIDENCE = 0.95  # with which a threshold is certified
# Where the same items decide whether the candidate is promoted, those that let it win flatter its
# threshold too (the winner's curse): half the chance of a broken promise makes up for that.
CHOSEN_CONFIDENCE = 0.975
# Of the items, when they are thinned to equal probability; and as many as any gate asks for.
LEAST_KEPT, FEWEST_KEPT = 0.5, 300


def thin(items: Sequence[HeldOutItem]) -> tuple[HeldOutItem, ...]:
    """Keep items so that all were drawn with equal probability: the snapshot's lowest.

    Decided by hashing the event id: the same item stays or goes at the same rate. Exact tests
    need whole items; weights would leave only approximations. At least half of the evidence is
    kept, and 300 items: where the lowest rate would cost more, the rate is the lowest that does
    not. The held-out draw is uniform at every moment, so what remains unequal is how much each
    period counts, and the comparison is still exact for that mixture of periods.
    """
    if not items:
        return ()
    rates = np.array([item.inclusion_probability for item in items])
    if not bool(np.all((rates > 0.0) & (rates <= 1.0))):
        raise ValueError("an item was drawn with a probability outside (0, 1]")
    rate = thinning_rate(rates)
    return tuple(
        item for item in items if _unit_hash(item.event_id) * item.inclusion_probability < rate
    )


def thinning_rate(rates: NDArray[np.float64]) -> float:
    """The lowest of these rates that leaves enough; half the items, or 300, or all."""
    low, high = float(rates.min()), float(rates.max())
    enough = max(rates.size * LEAST_KEPT, min(rates.size, FEWEST_KEPT))
    if np.minimum(1.0, low / rates).sum() >= enough:
        return low
    for _ in range(60):
        middle = (low + high) / 2.0
        if np.minimum(1.0, middle / rates).sum() >= enough:
            high = middle
        else:
            low = middle
    return high


def departed_pairs(
    earlier: Iterable[Evaluation],
    items: Sequence[HeldOutItem],
    kept: Iterable[str] = (),
) -> PairCounts:
    """Wins and losses of earlier comparisons on items that are not judged now, each once.

    `earlier` are comparisons of the same two students; `kept` names what is counted of the pool
    now. For the e-process, which bets on every
    item once and must not forget those that it lost on. Ties are left out: they bet nothing on
    "better", and without them "not worse" has less evidence, never more.
    """
    present = {item.event_id for item in thin(items)}.union(kept)
    gone = {
        flip.event_id: flip.negative
        for evaluation in earlier
        for flip in evaluation.flips
        if flip.event_id not in present
    }
    losses = sum(gone.values())
    return PairCounts(wins=len(gone) - losses, losses=losses)


def majority_answers(items: Sequence[HeldOutItem], label_counts: Mapping[str, int]) -> Answers:
    """The most frequent label of the training set, given to every item."""
    if not label_counts:
        raise ValueError("the majority class of no labels is not defined")
    label = min(label_counts, key=lambda name: (-label_counts[name], name))
    share = label_counts[label] / sum(label_counts.values())
    return Answers(name=MAJORITY, labels=(label,) * len(items), confidences=(share,) * len(items))


def evaluate(
    items: Sequence[HeldOutItem],
    candidate: Answers,
    rivals: Mapping[str, Answers],
    *,
    target: float,
    alpha: float = 0.05,
    seed: int = 0,
    pool: PoolPart | None = None,
    traffic: Sequence[HeldOutItem] = (),
    course: Course = NO_COURSE,
) -> Evaluation:
    """Compare all on the same items. Intervals are two-sided at `alpha`.

    Comparisons, agreement and slices are on `items`, where each group counts once. Thresholds and
    their coverage are promises about traffic, and are certified on `traffic` by its weights
    (`pipelines.traffic`); where there is none, on the items. Where agreement has fallen in the
    `course` of them, only what came since counts. The answers are to `asked_of(items, traffic)`.

    Against the champion the pairs of `pool` count too, and nowhere else: see `pipelines.pool`.

    `rivals` are keyed `champion`, `base`, `majority`, `nearest`; without `champion` the
    candidate is a first student, whose threshold is certified at `CONFIDENCE`, and not at
    `CHOSEN_CONFIDENCE`. Raises ValueError when the snapshot repeats a group or the answers do not
    belong to it.
    """
    _refuse_repeated_groups([*items, *(one.item for one in pool.items)] if pool else items)
    asked, kept = asked_of(items, traffic), list(thin(items))
    given = {CANDIDATE: candidate, **rivals}
    marked = {name: mark(asked, kept, traffic, one, course) for name, one in given.items()}
    ours, champion = marked[CANDIDATE], marked.get(CHAMPION)
    pairs = _pairs(marked, pool)
    level = CHOSEN_CONFIDENCE if champion else CONFIDENCE
    threshold = _certify(ours, target, level)
    return Evaluation(
        snapshot=snapshot_hash([*items, *traffic]),
        items=len(kept),
        agreement={
            name: wilson_share(sum(other.correct), len(kept), alpha)
            for name, other in marked.items()
        },
        difference={name: paired_difference(counts, alpha) for name, counts in pairs.items()},
        slices=_slices(kept, ours, champion, alpha, pool),
        flips=_flips(kept, ours, champion, threshold.value, pool) if champion else (),
        shown=_shown(ours, threshold),
        period=_period(kept),
        negative_flip_rate=_flip_rate(pairs.get(CHAMPION), alpha),
        calibration_error=calibration_error(
            ours.answers.confidences, ours.correct, alpha=alpha, seed=seed
        ),
        threshold=threshold,
        champion_threshold=_certify(champion, target, level) if champion else None,
        pairs=pairs,
        by_label=_by_label(kept, ours, champion, pool) if champion else {},
        coverage_gain_p=_coverage_gain(ours, champion, threshold, seed) if champion else None,
        unusable_answers=_unusable(ours.answers),
        items_until_certified=_items_lacking(ours, threshold),
        pooled=pool.facts() if pool else None,
    )


def _pairs(marked: Mapping[str, Marked], pool: PoolPart | None) -> dict[str, PairCounts]:
    ours = marked[CANDIDATE].correct
    pairs = {
        name: count_pairs(ours, other.correct)
        for name, other in marked.items()
        if name != CANDIDATE
    }
    if pool:
        pairs[CHAMPION] = added(pairs[CHAMPION], pool.outcomes())
    return pairs


def _certify(one: Marked, target: float, confidence_level: float) -> Threshold:
    found = certify_newest(
        one.promised.whole,
        one.promised.draws,
        one.promised.parts,
        target=target,
        confidence_level=confidence_level,
    )
    near = near_of(one.trusted, one.answers.distances, found.value)
    return replace(found, near=near, radius=one.radius)


def _coverage_gain(ours: Marked, champion: Marked, promise: Threshold, seed: int) -> float:
    """A comparison: on the items, each counted once, whatever the promise was certified on."""
    return coverage_gain_p(
        (ours.trusted, ours.correct),
        (champion.trusted, champion.correct),
        target=promise.target,
        confidence_level=promise.confidence_level,
        seed=seed,
    )


def _items_lacking(ours: Marked, threshold: Threshold) -> int | None:
    if threshold.value is not None:
        return None
    return items_until_certified(
        ours.trusted,
        ours.correct,
        target=threshold.target,
        confidence_level=threshold.confidence_level,
    )


def _refuse_repeated_groups(items: Sequence[HeldOutItem]) -> None:
    groups: set[str] = set()
    for item in items:
        if item.group_id in groups:
            raise ValueError(f"near-duplicate group {item.group_id} is in the snapshot twice")
        groups.add(item.group_id)
    if len({item.event_id for item in items}) != len(items):
        raise ValueError("an event is in the snapshot twice")


def _period(items: Sequence[HeldOutItem]) -> tuple[datetime, datetime] | None:
    known = [item.occurred_at for item in items if item.occurred_at is not None]
    return (min(known), max(known)) if known else None


def _shown(ours: Marked, threshold: Threshold) -> Shown:
    distances = ours.answers.distances or (None,) * len(ours.correct)
    places = [place(distance, threshold.near, threshold.radius) for distance in distances]
    return shown_by(ours.answers.confidences, places, ours.correct)


def _slices(
    items: Sequence[HeldOutItem],
    ours: Marked,
    champion: Marked | None,
    alpha: float,
    pool: PoolPart | None,
) -> tuple[Slice, ...]:
    """Every segment, however small; the worst first."""
    kept: dict[str, list[int]] = {}
    for one, outcome in zip(pool.items, pool.outcomes(), strict=True) if pool else ():
        kept.setdefault(one.item.segment, []).append(outcome)
    members: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        members.setdefault(item.segment, []).append(index)
    slices = []
    for segment, indexes in members.items():
        right = [ours.correct[index] for index in indexes]
        pairs = (
            added(
                count_pairs(right, [champion.correct[index] for index in indexes]),
                kept.get(segment, ()),
            )
            if champion
            else None
        )
        slices.append(
            Slice(
                segment=segment,
                agreement=wilson_share(sum(right), len(right), alpha),
                difference=paired_difference(pairs, alpha) if pairs else None,
                pairs=pairs,
            )
        )
    return tuple(sorted(slices, key=_badness))


def _by_label(
    items: Sequence[HeldOutItem], ours: Marked, champion: Marked, pool: PoolPart | None
) -> dict[str, PairCounts]:
    """By the teacher's label; where nobody knows it, the pair is of none."""
    pairs = {
        label: count_pairs(
            [right for right, item in zip(ours.correct, items, strict=True) if item.label == label],
            [
                right
                for right, item in zip(champion.correct, items, strict=True)
                if item.label == label
            ],
        )
        for label in sorted({item.label for item in items if item.label})
    }
    for one, outcome in zip(pool.items, pool.outcomes(), strict=True) if pool else ():
        if one.item.label and outcome:
            pairs[one.item.label] = added(pairs.get(one.item.label, PairCounts()), [outcome])
    return pairs


def _badness(part: Slice) -> tuple[float, float, str]:
    """Sorts by what is surely bad: the upper end of the interval, not the luck of two items."""
    difference = part.difference.high if part.difference else 0.0
    return (difference, part.agreement.high, part.segment)


def _flips(
    items: Sequence[HeldOutItem],
    ours: Marked,
    champion: Marked,
    threshold: float | None,
    pool: PoolPart | None,
) -> tuple[Flip, ...]:
    """Negative first, and among them the surest first: those would be served."""
    outcomes = [
        int(one) - int(other) for one, other in zip(ours.correct, champion.correct, strict=True)
    ]
    found = _changes(items, outcomes, (ours.answers, champion.answers), (ours.trusted, threshold))
    if pool:
        said = pool.candidate
        trusted = within(said.confidences, said.distances, ours.radius)
        found += _changes(
            [one.item for one in pool.items],
            pool.outcomes(),
            (said, pool.champion),
            (trusted, threshold),
        )
    found.sort(key=lambda pair: (not pair[1].negative, pair[0], pair[1].event_id))
    return tuple(flip for _, flip in found)


def _changes(
    items: Sequence[HeldOutItem],
    outcomes: Sequence[int],
    said: tuple[Answers, Answers],
    trusted: tuple[Sequence[float], float | None],
) -> list[tuple[float, Flip]]:
    """The items that one of the two is right on, each behind what it is sorted by."""
    (ours, champion), (sure, threshold) = said, trusted
    return [
        (
            -sure[index],
            Flip(
                event_id=item.event_id,
                text=item.text,
                label=item.label,
                before=champion.labels[index],
                after=ours.labels[index],
                negative=outcome < 0,
                served=threshold is not None and sure[index] >= threshold,
            ),
        )
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
        if outcome
    ]


def _flip_rate(pairs: PairCounts | None, alpha: float) -> Estimate | None:
    return exact_share(pairs.losses, pairs.total, alpha / 2.0) if pairs else None


def _unusable(answers: Answers) -> int:
    return sum(
        1
        for label, confidence in zip(answers.labels, answers.confidences, strict=True)
        if not label or not 0.0 <= confidence <= 1.0 or math.isnan(confidence)
    )


def _unit_hash(event_id: str) -> float:
    digest = hashlib.blake2b(event_id.encode(), digest_size=8, person=b"thin").digest()
    return int.from_bytes(digest, "big") / 2**64
