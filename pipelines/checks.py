"""The checks that need no statistics of their own: is the evidence sound, are limits kept?

With the policy and the facts that a judgement rests on. `pipelines.gate` adds the comparisons.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.evaluate import BASE, CANDIDATE, CHAMPION, MAJORITY
from pipelines.shape import MOST_OF_ANOTHER, TEXT, unlike
from pipelines.statistics.certify import items_needed
from pipelines.types import Check, Evaluation, PairCounts

LABELS_CAME = "labels_came"
STEPS_WANTED = 3  # of the strictest threshold's items: room for a mistake or two among them
MOST_FOR_STEPS = 300  # so that an ambitious target does not ask for a thousand items first


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """What a candidate has to show. Limits that are None are not checked."""

    alpha: float = 0.05
    delta: float = 0.01
    min_groups: int = 150
    min_segment_pairs: int = 200
    max_negative_flips: float = 0.03
    max_calibration_error: float = 0.10
    max_latency_ms: float | None = None
    max_size_mb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFacts:
    """What the evaluation cannot know about itself. The caller has to say it."""

    has_champion: bool  # a student is serving now
    champion_is_current: bool  # and it is the one that was compared (or there is none)
    evaluation_is_fresh: bool  # of this artifact, on the present held-out window
    leaked_items: int  # held-out items whose near-duplicates the candidate was trained on
    latency_ms: float | None = None
    size_mb: float | None = None
    shape: str = TEXT  # of the candidate's answers (`pipelines.shape`)
    shapes: Mapping[str, int] = field(default_factory=dict)  # of the newest that the app received
    # Before the first look: labels of kept events on which the two differ, that it waits for.
    labels_awaited: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything that one judgement rests on."""

    evaluation: Evaluation
    policy: GatePolicy
    facts: GateFacts
    alpha: float  # what this look may spend
    look: int
    departed: Mapping[str, PairCounts]

    def seen(self, rival: str) -> PairCounts:
        """Every pair that the candidate ever met, for the e-process."""
        now, gone = self.evaluation.pairs[rival], self.departed.get(rival, PairCounts())
        return PairCounts(
            wins=now.wins + gone.wins, losses=now.losses + gone.losses, ties=now.ties + gone.ties
        )


def conclusion(
    name: str, passed: bool, value: float | None, threshold: float | None, sentence: str
) -> Check:
    return Check(
        name=name, passed=bool(passed), value=value, threshold=threshold, sentence=sentence
    )


def same_shape(case: Case) -> Check:
    """Would the app be able to parse the candidate's answers as it does those of today?"""
    shapes, own = case.facts.shapes, case.facts.shape
    why, total = unlike(own, shapes), sum(shapes.values())
    sentence = why or f"Its answers look like those that the app receives: {own}."
    share = shapes.get(own, 0) / total if total else None
    return conclusion("shape", not why, share, 1 - MOST_OF_ANOTHER, sentence)


# --- May this evaluation be judged at all? ---


def groups_needed(min_groups: int, target: float) -> int:
    """How many held-out groups a comparison needs, a first student's too.

    At least `min_groups`, and three times the items that the strictest threshold of `target`
    takes (`certify.items_needed`), of which 300 at most are asked for; never less than it takes
    once. With fewer, a student that is good enough would rarely be certified, and what is
    certified would too often be luck.
    """
    step = items_needed(target)
    return max(min_groups, step, min(STEPS_WANTED * step, MOST_FOR_STEPS))


def why_that_many(min_groups: int, target: float) -> str:
    """The reason for `groups_needed`, after "because"."""
    if groups_needed(min_groups, target) == min_groups:
        return f"gate.min_groups is {min_groups}"
    return (
        f"it takes {items_needed(target)} items without an error to certify a target of "
        f"{100 * target:g} % at all, and more leave room for one"
    )


def policy_makes_sense(policy: GatePolicy) -> Check:
    sound = (
        0.0 < policy.alpha < 0.5
        and 0.0 <= policy.delta < 1.0
        and policy.min_groups >= 1
        and policy.min_segment_pairs >= 1
        and 0.0 <= policy.max_negative_flips <= 1.0
        and 0.0 <= policy.max_calibration_error <= 1.0
    )
    sentence = "The gate's settings are usable." if sound else "The gate's settings are unusable."
    return conclusion("settings", sound, None, None, sentence)


def evidence_checks(case: Case) -> list[Check]:
    return [
        _baseline(case),
        _fresh(case),
        _untouched(case),
        _enough(case),
        _aligned(case),
        _usable(case),
    ]


def bars(case: Case) -> tuple[str, ...]:
    return (CHAMPION,) if case.facts.has_champion else (MAJORITY, BASE)


def _baseline(case: Case) -> Check:
    compared = CHAMPION in case.evaluation.pairs
    if not case.facts.champion_is_current or compared != case.facts.has_champion:
        passed, sentence = False, "The comparison was not made with the student that serves now."
    elif any(bar not in case.evaluation.pairs for bar in bars(case)):
        missing = ", ".join(bar for bar in bars(case) if bar not in case.evaluation.pairs)
        passed, sentence = False, f"There is no comparison with: {missing}."
    elif compared:
        passed, sentence = True, "Compared with the student that serves now."
    else:
        passed, sentence = True, "A first student: compared with majority class and base model."
    return conclusion("baseline", passed, None, None, sentence)


def _fresh(case: Case) -> Check:
    fresh = case.facts.evaluation_is_fresh
    sentence = "The evaluation is up to date." if fresh else "The evaluation is out of date."
    return conclusion("fresh", fresh, None, None, sentence)


def _untouched(case: Case) -> Check:
    leaked = case.facts.leaked_items
    sentence = (
        "No held-out item is near anything that the candidate was trained on."
        if leaked == 0
        else f"{leaked} held-out items are near something that the candidate was trained on."
    )
    return conclusion("untouched_items", leaked == 0, leaked, 0, sentence)


def _enough(case: Case) -> Check:
    items = case.evaluation.items
    needed = groups_needed(case.policy.min_groups, case.evaluation.threshold.target)
    sentence = (
        f"{items} distinct held-out groups; {needed} are needed."
        if items < needed
        else f"{items} distinct held-out groups, at least the {needed} that are needed."
    )
    return conclusion("enough_items", items >= needed, items, needed, sentence)


def _aligned(case: Case) -> Check:
    evaluation = case.evaluation
    counted = {bar: evaluation.pairs.get(bar, PairCounts()) for bar in bars(case)}
    kept = evaluation.pooled.items if evaluation.pooled else 0
    aligned = all(
        pairs.total == evaluation.items + (kept if bar == CHAMPION else 0)
        and min(pairs.wins, pairs.losses, pairs.ties) >= 0
        for bar, pairs in counted.items()
    )
    sentence = (
        "All were asked the same items." if aligned else "They were not asked the same items."
    )
    return conclusion("same_items", aligned, None, None, sentence)


def _usable(case: Case) -> Check:
    broken = case.evaluation.unusable_answers
    agreement = case.evaluation.agreement.get(CANDIDATE)
    usable = broken == 0 and agreement is not None and 0.0 <= agreement.value <= 1.0
    sentence = (
        "Every answer of the candidate has a label and a confidence."
        if usable
        else f"{broken} answers of the candidate lack a label or a confidence between 0 and 1."
        if broken
        else "The candidate's agreement is not a number."
    )
    return conclusion("usable_answers", usable, broken, 0, sentence)


def waits(case: Case) -> Check:
    """Not passed while labels are on their way that the first look, the sharpest, should have."""
    count = case.facts.labels_awaited
    sentence = (
        f"{count} labels of kept events are asked for where it and the champion differ; it is "
        "judged when they have come."
    )
    return conclusion(LABELS_CAME, count == 0, count, 0, sentence)


# --- For every candidate ---


def calibration(case: Case) -> Check:
    error, limit = case.evaluation.calibration_error, case.policy.max_calibration_error
    if not 0.0 <= error.low <= error.value <= 1.0:
        return conclusion("calibration", False, None, limit, "Calibration is unknown.")
    return conclusion(
        "calibration",
        error.low <= limit,
        error.low,
        limit,
        f"Confidence is off by {percent(error.value)} on average, of which {percent(error.low)} "
        f"are more than chance; {percent(limit)} are accepted.",
    )


def limits(case: Case) -> list[Check]:
    checks = []
    if case.policy.max_latency_ms is not None:
        checks.append(
            _limit(
                "latency",
                case.facts.latency_ms,
                case.policy.max_latency_ms,
                "An answer takes",
                "ms",
            )
        )
    if case.policy.max_size_mb is not None:
        checks.append(
            _limit("size", case.facts.size_mb, case.policy.max_size_mb, "The student takes", "MB")
        )
    return checks


def _limit(name: str, value: float | None, limit: float, words: str, unit: str) -> Check:
    if value is None or math.isnan(value):
        return conclusion(name, False, None, limit, f"{words} an unknown number of {unit}.")
    sentence = f"{words} {value:.3g} {unit}; {limit:g} {unit} are allowed."
    return conclusion(name, 0.0 <= value <= limit, value, limit, sentence)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    return f"{100 * share:+.1f}"
