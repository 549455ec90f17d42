"""The promotion gate: an evaluation in, a `GateReport` out. It fails closed.

A candidate is promoted falsely if it is worse than the champion by `delta` or more, or neither
better nor covers more. Of the candidates of a task that were first compared within one calendar
year, with alpha = .05: where none is truly better, the chance that any is promoted falsely is at
most alpha. Where some are, the expected share of false ones among the promoted is at most alpha.
What a candidate may spend of a year's alpha: `pipelines.statistics.spending`; how it is divided
among the ways to pass: the shares below.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from pipelines.checks import (
    Case,
    GateFacts,
    GatePolicy,
    bars,
    calibration,
    conclusion,
    evidence_checks,
    limits,
    percent,
    points,
    policy_makes_sense,
    same_shape,
    waits,
)
from pipelines.evaluate import BASE, CHAMPION, MAJORITY, SIBLING
from pipelines.statistics.groups import hidden_loss, worse_in_some_group
from pipelines.statistics.intervals import (
    exact_low,
    holm,
    normal_quantile,
    paired_high,
    paired_low,
    sign_test,
)
from pipelines.statistics.sequences import pair_e_value
from pipelines.statistics.spending import Turn, level
from pipelines.types import Check, Evaluation, GateReport, PairCounts, Verdict

__all__ = ["GateFacts", "GatePolicy", "Turn", "compared", "judge"]

# How a candidate's part is divided. Its first look uses tests of fixed size, which need about
# half the items; every later look at the same candidate uses the e-process, which may be
# looked at for ever and so costs nothing more.
BETTER_SHARE = 0.6
COVERAGE_SHARE = 0.2
LATER_LOOKS_SHARE = 0.2
FIRST_LOOK_SHARE = BETTER_SHARE + COVERAGE_SHARE


def compared(report: GateReport) -> bool:
    """Did this judgement use its items up? Only then does it count as an attempt or a look."""
    comparisons = {"not_worse", f"beats_{MAJORITY}", f"beats_{BASE}"}
    return any(check.name in comparisons for check in report.checks)


def judge(
    evaluation: Evaluation | None,
    policy: GatePolicy,
    facts: GateFacts,
    *,
    turn: Turn,
    departed: Mapping[str, PairCounts] | None = None,
) -> GateReport:
    """Judge one candidate, whose `turn` it is in the sequence of comparisons.

    When items were added it is judged again with the next look, and the same share. A
    judgement that did not get as far as comparing (see `compared`) counts as neither attempt
    nor look. Items that it met and that have left the window since are passed as `departed`,
    by rival. A promotable report stands; it is not looked at again. Whatever goes wrong, the
    answer is a report that is not promotable.
    """
    alpha = 0.0
    try:
        alpha = level(policy.alpha, turn)
        return _judge(evaluation, policy, facts, turn, alpha, departed or {})
    except Exception as error:
        sentence = f"The candidate could not be judged: {error}."
        return _report([conclusion("judgement", False, None, None, sentence)], turn, alpha)


def _judge(
    evaluation: Evaluation | None,
    policy: GatePolicy,
    facts: GateFacts,
    turn: Turn,
    alpha: float,
    departed: Mapping[str, PairCounts],
) -> GateReport:
    if evaluation is None:
        sentence = "There is no evaluation of this candidate."
        return _report([conclusion("evaluation", False, None, None, sentence)], turn, alpha)
    case = Case(
        evaluation=evaluation,
        policy=policy,
        facts=facts,
        alpha=alpha,
        look=turn.look,
        departed=departed,
    )
    evidence = [policy_makes_sense(policy), same_shape(case), *evidence_checks(case)]
    if not all(check.passed for check in evidence):
        return _report(evidence, turn, alpha)
    if facts.labels_awaited:  # nothing is compared yet, so that nothing is used up
        return _report([*evidence, waits(case)], turn, alpha)
    if facts.has_champion:
        comparison, verdict = _against_champion(case)
    else:
        comparison, verdict = _first_student(case)
    if SIBLING in evaluation.pairs:
        comparison.append(_beats(case, SIBLING, "the task's own recipe on the same labels"))
    kept = [calibration(case), *limits(case)]
    return _report([*evidence, *comparison, *kept], turn, alpha, verdict)


def _report(
    checks: list[Check], turn: Turn, alpha: float, verdict: Verdict = "insufficient_evidence"
) -> GateReport:
    return GateReport(verdict=verdict, checks=tuple(checks), attempt=turn.attempt, alpha=alpha)


# --- Against the champion ---


def _against_champion(case: Case) -> tuple[list[Check], Verdict]:
    not_worse = _not_worse(case)
    shown_better = _shown_better(case, CHAMPION, BETTER_SHARE)
    checks = [
        not_worse,
        _better_or_more_coverage(case, shown_better),
        _segments(case),
        _negative_flips(case),
    ]
    if not_worse.passed:
        return checks, "better" if shown_better else "non_inferior"
    return checks, _worse_or_unknown(case)


def _not_worse(case: Case) -> Check:
    pairs, delta = case.evaluation.pairs[CHAMPION], case.policy.delta
    gain = points((pairs.wins - pairs.losses) / pairs.total)
    if case.look > 1:
        wealth = pair_e_value(case.seen(CHAMPION), margin=delta)
        return _wealth_check(
            case, "not_worse", wealth, f"not worse than the champion by {100 * delta:g} points"
        )
    low = paired_low(pairs, case.alpha * FIRST_LOOK_SHARE)
    return conclusion(
        "not_worse",
        low > -delta,
        low,
        -delta,
        f"Agreement differs from the champion's by {gain} points; the cautious figure is "
        f"{points(low)} points and has to be above {points(-delta)}.",
    )


def _shown_better(case: Case, rival: str, share: float) -> bool:
    if case.look > 1:
        return pair_e_value(case.seen(rival)) >= _wealth_needed(case)
    pairs, level = case.evaluation.pairs[rival], case.alpha * share
    # The score bound is an approximation far out in the tail; the sign test is exact.
    return paired_low(pairs, level) > 0.0 and sign_test(pairs) <= level


def _better_or_more_coverage(case: Case, shown_better: bool) -> Check:
    name = "better_or_more_coverage"
    if case.look > 1:
        wealth = pair_e_value(case.seen(CHAMPION))
        return _wealth_check(case, name, wealth, "better than the champion")
    low = paired_low(case.evaluation.pairs[CHAMPION], case.alpha * BETTER_SHARE)
    if shown_better:
        sentence = f"Better than the champion, by at least {points(low)} points."
        return conclusion(name, True, low, 0.0, sentence)
    before = case.evaluation.champion_threshold
    chance, after = case.evaluation.coverage_gain_p, case.evaluation.threshold
    if chance is None or before is None:
        return conclusion(name, False, low, 0.0, "Not shown to be better than the champion.")
    passed = after.coverage > before.coverage and chance <= case.alpha * COVERAGE_SHARE
    change = f"from {percent(before.coverage)} to {percent(after.coverage)}"
    if passed:
        sentence = (
            f"Not shown to be better, but trusted coverage goes {change}, more than two equally "
            f"good students would differ (p = {chance:.2g})."
        )
    else:
        sentence = (
            f"Not shown to be better: with {case.evaluation.pairs[CHAMPION].total} items a gain of "
            f"about "
            f"{points(_visible_gain(case))} points would show. Nor is more trusted coverage "
            f"({change}; p = {chance:.2g}, has to be {case.alpha * COVERAGE_SHARE:.2g} or less)."
        )
    return conclusion(name, passed, low, 0.0, sentence)


def _visible_gain(case: Case) -> float:
    pairs = case.evaluation.pairs[CHAMPION]
    differing = max(pairs.wins + pairs.losses, 1) / pairs.total
    z = normal_quantile(1.0 - case.alpha * BETTER_SHARE)
    return z * math.sqrt(differing / pairs.total)


def _wealth_needed(case: Case) -> float:
    return 1.0 / (case.alpha * LATER_LOOKS_SHARE)


def _wealth_check(case: Case, name: str, wealth: float, claim: str) -> Check:
    needed = _wealth_needed(case)
    return conclusion(
        name,
        wealth >= needed,
        wealth,
        needed,
        f"Look {case.look} at this candidate: the evidence that it is {claim} is {wealth:.3g}; "
        f"it has to reach {needed:.0f}.",
    )


def _segments(case: Case) -> Check:
    """Segments that are large enough each alone; smaller ones, and labels, together."""
    smallest = case.policy.min_segment_pairs
    slices = {part.segment: part.pairs for part in case.evaluation.slices if part.pairs is not None}
    large = {name: pairs for name, pairs in slices.items() if pairs.total >= smallest}
    together = {
        f"the {len(small):,} {what} with fewer than {smallest} items, taken together": small
        for what, groups in (("segments", slices), ("labels", case.evaluation.by_label))
        if len(small := [pairs for pairs in groups.values() if pairs.total < smallest]) > 1
    }
    p_values = [
        sign_test(PairCounts(wins=pairs.losses, losses=pairs.wins)) for pairs in large.values()
    ]
    p_values += [worse_in_some_group(groups) for groups in together.values()]
    rejected = holm(p_values, case.policy.alpha)
    worse = [name for name, bad in zip([*large, *together], rejected, strict=True) if bad]
    if worse:
        sentence = f"Worse than the champion on: {', '.join(sorted(worse))}."
    else:
        sentence = _no_segment_worse(case, len(large), together)
    return conclusion("segments", not worse, len(worse), 0, sentence)


def _no_segment_worse(case: Case, large: int, together: Mapping[str, Sequence[PairCounts]]) -> str:
    smallest = case.policy.min_segment_pairs
    said = [
        f"None of {large} segments with {smallest} items or more got worse."
        if large
        else f"No segment has the {smallest} items that it takes to judge it alone."
    ]
    for name, groups in together.items():
        items = max(1, round(median(pairs.total for pairs in groups)))
        hidden = percent(hidden_loss(items, case.policy.alpha))
        said.append(
            f"Nor did {name}; but a single one of {items} items could have lost {hidden} unseen."
        )
    return " ".join(said)


def _negative_flips(case: Case) -> Check:
    """Fails when the rate is surely above the budget: an honest 2.5 % must not fail by chance.

    Only answers that would be served count, those at or above the certified threshold: below
    it the teacher answers. A cap on all of them would stop true gains the surer, the more
    evidence there is.
    """
    pairs, budget = case.evaluation.pairs[CHAMPION], case.policy.max_negative_flips
    served = sum(flip.negative and flip.served for flip in case.evaluation.flips)
    low = exact_low(served, pairs.total, case.policy.alpha)
    return conclusion(
        "negative_flips",
        low <= budget,
        low,
        budget,
        f"{pairs.losses} of {pairs.total} items ({percent(pairs.losses / pairs.total)}) were right "
        f"and are wrong now, {served} of them ({percent(served / pairs.total)}) so surely that "
        f"they would be served: at least {percent(low)} beyond chance, and {percent(budget)} are "
        f"accepted.",
    )


# --- A first student ---


def _first_student(case: Case) -> tuple[list[Check], Verdict]:
    checks = [
        _beats(case, MAJORITY, "always giving the most frequent label"),
        _beats(case, BASE, "the base model used directly"),
    ]
    if all(check.passed for check in checks):
        return checks, "better"
    return checks, _worse_or_unknown(case)


def _beats(case: Case, rival: str, words: str) -> Check:
    name, pairs = f"beats_{rival}", case.evaluation.pairs[rival]
    passed = _shown_better(case, rival, FIRST_LOOK_SHARE)
    if case.look > 1:
        return _wealth_check(case, name, pair_e_value(case.seen(rival)), f"better than {words}")
    low = paired_low(pairs, case.alpha * FIRST_LOOK_SHARE)
    gain = points((pairs.wins - pairs.losses) / pairs.total)
    return conclusion(
        name,
        passed,
        low,
        0.0,
        f"Agreement differs from that of {words} by {gain} points; the cautious figure is "
        f"{points(low)} points and has to be above 0.",
    )


def _worse_or_unknown(case: Case) -> Verdict:
    surely_worse = any(
        paired_high(case.evaluation.pairs[bar], case.policy.alpha) < 0.0 for bar in bars(case)
    )
    return "worse" if surely_worse else "insufficient_evidence"
