"""The gate lets real gains through, keeps null candidates out, and fails closed."""

import dataclasses
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from simulated_pairs import (
    Marks,
    answers,
    calibrated,
    candidate_marks,
    champion_marks,
    counts_only,
    held_out_items,
    promoted,
    with_thresholds,
)

from pipelines.evaluate import BASE, CHAMPION, MAJORITY, evaluate, majority_answers
from pipelines.gate import GateFacts, GatePolicy, Turn, compared, judge
from pipelines.pairs import Flip
from pipelines.statistics.intervals import exact_low
from pipelines.statistics.spending import level, shares
from pipelines.types import (
    Answers,
    Check,
    Estimate,
    Evaluation,
    GateReport,
    PairCounts,
    Slice,
    Threshold,
)

POLICY = GatePolicy()
SECOND = GateFacts(
    has_champion=True, champion_is_current=True, evaluation_is_fresh=True, leaked_items=0
)
FIRST = dataclasses.replace(SECOND, has_champion=False)
DAY = timedelta(days=1)
DAILY = shares([datetime(2026, 1, 1, tzinfo=UTC) + day * DAY for day in range(10)])
ALONE = Turn(attempt=1, look=1, share=DAILY[0], promotions=0)


def threshold(coverage: float = 0.5) -> Threshold:
    return Threshold(
        value=0.9,
        target=0.9,
        confidence_level=0.95,
        agreement_above=Estimate(value=0.95, low=0.9, high=1.0, n=100),
        coverage=coverage,
        reason="",
    )


def evaluation(**changes: Any) -> Evaluation:
    """Clearly better than the champion: 40 wins, 8 losses on 400 items."""
    plain: dict[str, Any] = {
        "snapshot": "s",
        "items": 400,
        "agreement": {"candidate": Estimate(value=0.9, low=0.87, high=0.93, n=400)},
        "difference": {},
        "slices": (),
        "flips": (),
        "negative_flip_rate": None,
        "calibration_error": Estimate(value=0.04, low=0.0, high=0.08, n=400),
        "threshold": threshold(),
        "champion_threshold": threshold(),
        "pairs": {CHAMPION: PairCounts(wins=40, losses=8, ties=352)},
        "coverage_gain_p": 1.0,
    }
    return Evaluation(**{**plain, **changes})


def test_a_candidate_whose_answers_would_look_otherwise_is_not_promotable() -> None:
    """And nothing is used up: it is not even compared."""
    three = "{confidence: number, label: text, reason: text}"
    facts = dataclasses.replace(SECOND, shape="{label: text}", shapes={three: 95, "text": 5})
    report = judge(evaluation(), POLICY, facts, turn=ALONE)
    check = named(report, "shape")
    assert (report.promotable, check.passed, compared(report)) == (False, False, False)
    assert check.sentence == (
        f"The app receives {three} (95 of the newest 100 answers); the student would answer "
        "{label: text}, which an app that parses the other would not understand."
    )
    mostly = dataclasses.replace(SECOND, shape="text", shapes={"text": 95, three: 5})
    assert judge(evaluation(), POLICY, mostly, turn=ALONE).promotable
    assert judge(evaluation(), POLICY, SECOND, turn=ALONE).promotable, "nothing is known"
    mixed = dataclasses.replace(SECOND, shape="text", shapes={"text": 94, three: 6})
    assert not judge(evaluation(), POLICY, mixed, turn=ALONE).promotable


def named(report: GateReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def failed(report: GateReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


# --- Real gains pass ---


def approvals(
    items: int, *, agreement: float, discordance: float, gain: float, trials: int
) -> float:
    generator = np.random.default_rng(items)
    passed = 0
    for trial in range(trials):
        champion = champion_marks(generator, items, agreement)
        candidate = candidate_marks(
            generator, champion, agreement=agreement, discordance=discordance, gain=gain
        )
        passed += promoted(candidate, champion, POLICY, SECOND, turn=ALONE, seed=trial)
    return passed / trials


# With 20 % of 1,540 and 3,080 bought labels held out. The first two rows were measured with
# the frozen encoder on Banking77 over four shuffles; the others are harder than that.
@pytest.mark.parametrize(
    ("items", "agreement", "discordance", "gain", "at_least"),
    [
        (308, 0.765, 0.13, 0.09, 0.95),
        (616, 0.855, 0.07, 0.042, 0.90),
        (308, 0.81, 0.10, 0.05, 0.50),
        (616, 0.86, 0.10, 0.04, 0.65),
    ],
)
def test_the_next_student_on_banking77_is_approved(
    items: int, agreement: float, discordance: float, gain: float, at_least: float
) -> None:
    share = approvals(items, agreement=agreement, discordance=discordance, gain=gain, trials=60)
    assert share >= at_least


def test_a_candidate_that_learned_a_new_intent_is_approved() -> None:
    assert approvals(350, agreement=0.82, discordance=0.15, gain=0.12, trials=60) >= 0.95


def test_a_first_student_with_154_items_is_approved() -> None:
    generator = np.random.default_rng(1)
    items = held_out_items(154, segments=77)
    passed = 0
    for _ in range(30):
        base = champion_marks(generator, 154, 0.62)
        student = candidate_marks(generator, base, agreement=0.62, discordance=0.30, gain=0.17)
        figures = evaluate(
            items,
            answers("candidate", student),
            {BASE: answers("base", base), MAJORITY: majority_answers(items, {"wrong": 3})},
            target=0.9,
        )
        passed += judge(figures, POLICY, FIRST, turn=ALONE).promotable
    assert passed >= 26


def test_an_equal_candidate_with_more_coverage_is_approved() -> None:
    generator = np.random.default_rng(5)
    right = generator.random(4_000) < 0.92
    hesitant = Marks(np.full(4_000, 0.92), right)
    decided = calibrated(generator, right, 0.92)
    figures = counts_only(decided, hesitant, POLICY, target=0.97, seed=0)
    figures = with_thresholds(figures, decided, hesitant, target=0.97, seed=0)
    report = judge(figures, POLICY, SECOND, turn=ALONE)
    assert report.verdict == "non_inferior"
    assert report.promotable
    assert "trusted coverage goes from 0.0 %" in named(report, "better_or_more_coverage").sentence


def test_an_equal_candidate_without_more_coverage_is_not_promotable() -> None:
    twins = evaluation(
        items=4_000,
        pairs={CHAMPION: PairCounts(wins=20, losses=20, ties=3_960)},
        threshold=threshold(0.51),
        coverage_gain_p=0.3,
    )
    report = judge(twins, POLICY, SECOND, turn=ALONE)
    assert report.verdict == "non_inferior"
    assert failed(report) == {"better_or_more_coverage"}


# --- Null candidates stay out ---


@pytest.mark.parametrize("gain", [0.0, -0.02])
@pytest.mark.parametrize("discordance", [0.04, 0.10])
def test_ten_null_candidates_in_a_row_are_promoted_at_most_as_often_as_alpha(
    gain: float, discordance: float
) -> None:
    generator = np.random.default_rng(round(1000 * discordance + 100 * gain) + 77)
    # Flips and calibration would stop some by themselves; the promise is about the tests.
    policy = GatePolicy(max_negative_flips=1.0, max_calibration_error=1.0)
    windows, wrongly = 200, 0
    for window in range(windows):
        champion = champion_marks(generator, 400, 0.9)
        for attempt, share in enumerate(DAILY, start=1):
            candidate = candidate_marks(
                generator, champion, agreement=0.9, discordance=discordance, gain=gain
            )
            seed = window * 10 + attempt
            turn = dataclasses.replace(ALONE, attempt=attempt, share=share)
            if promoted(candidate, champion, policy, SECOND, turn=turn, seed=seed):
                wrongly += 1
                break
    assert wrongly / windows <= POLICY.alpha + 2 * math.sqrt(0.05 * 0.95 / windows)


def test_looking_again_and_again_at_a_null_candidate_promotes_it_rarely() -> None:
    generator = np.random.default_rng(3)
    trials, wrongly = 200, 0
    for _ in range(trials):
        outcomes = generator.choice(3, size=2_000, p=[0.05, 0.05, 0.90])
        for look, end in enumerate(range(200, 2_001, 100), start=1):
            won, lost, tied = np.bincount(outcomes[:end], minlength=3)
            pairs = PairCounts(wins=int(won), losses=int(lost), ties=int(tied))
            figures = evaluation(items=end, pairs={CHAMPION: pairs})
            if judge(
                figures,
                GatePolicy(max_negative_flips=1.0),
                SECOND,
                turn=dataclasses.replace(ALONE, look=look),
            ).promotable:
                wrongly += 1
                break
    allowed = level(0.05, ALONE)
    assert wrongly / trials <= allowed + 2 * math.sqrt(allowed / trials)


def test_looking_again_at_a_better_candidate_promotes_it_in_the_end() -> None:
    pairs = PairCounts(wins=70, losses=25, ties=805)
    figures = evaluation(items=900, pairs={CHAMPION: pairs})
    assert judge(figures, POLICY, SECOND, turn=dataclasses.replace(ALONE, look=7)).promotable
    few = evaluation(items=300, pairs={CHAMPION: PairCounts(wins=23, losses=8, ties=269)})
    assert not judge(few, POLICY, SECOND, turn=dataclasses.replace(ALONE, look=7)).promotable
    gone = {CHAMPION: PairCounts(wins=47, losses=17, ties=536)}
    assert judge(
        few, POLICY, SECOND, turn=dataclasses.replace(ALONE, look=7), departed=gone
    ).promotable


def promoted_at_some_look(outcomes: np.ndarray[Any, np.dtype[np.int64]]) -> bool:
    """Judged from 150 items on, with each fifth more, until it is promotable or surely worse."""
    end, look = 150.0, 0
    while end <= outcomes.size:
        look += 1
        won, lost, tied = np.bincount(outcomes[: int(end)], minlength=3)
        pairs = PairCounts(wins=int(won), losses=int(lost), ties=int(tied))
        figures = evaluation(items=int(end), pairs={CHAMPION: pairs})
        report = judge(figures, POLICY, SECOND, turn=dataclasses.replace(ALONE, look=look))
        if report.promotable or report.verdict == "worse":
            return report.promotable
        end *= 1.2
    return False


def test_a_candidate_that_is_found_not_worse_early_is_promoted_once_it_is_shown_better() -> None:
    """Not looked at again after `non_inferior`, 6 of 100 such candidates would be promoted."""
    generator = np.random.default_rng(11)
    lives = [generator.choice(3, size=3_000, p=[0.035, 0.015, 0.95]) for _ in range(50)]
    assert sum(promoted_at_some_look(outcomes) for outcomes in lives) >= 40


def test_a_later_attempt_has_to_show_more() -> None:
    pairs = PairCounts(wins=30, losses=13, ties=357)
    figures = evaluation(pairs={CHAMPION: pairs})
    assert judge(figures, POLICY, SECOND, turn=ALONE).promotable
    later = dataclasses.replace(ALONE, attempt=10, share=DAILY[-1])
    assert not judge(figures, POLICY, SECOND, turn=later).promotable


def test_promotions_lower_what_a_later_look_has_to_show_and_not_a_first_one() -> None:
    figures = evaluation(pairs={CHAMPION: PairCounts(wins=29, losses=8, ties=363)})

    def judged(look: int, promotions: int) -> GateReport:
        turn = dataclasses.replace(ALONE, look=look, promotions=promotions)
        return judge(figures, POLICY, SECOND, turn=turn)

    assert failed(judged(2, 0)) == {"better_or_more_coverage"}
    assert judged(2, 2).promotable
    assert judged(1, 0) == judged(1, 2)


# --- Each check can stop a candidate ---


def test_a_clearly_better_candidate_passes_every_check() -> None:
    report = judge(evaluation(), POLICY, SECOND, turn=ALONE)
    assert report.verdict == "better"
    assert report.promotable
    assert compared(report)
    assert all(check.sentence.endswith(".") for check in report.checks)


def test_a_worse_candidate_is_called_worse() -> None:
    pairs = PairCounts(wins=8, losses=40, ties=352)
    report = judge(evaluation(pairs={CHAMPION: pairs}), POLICY, SECOND, turn=ALONE)
    assert report.verdict == "worse"
    assert {"not_worse", "better_or_more_coverage"} <= failed(report)


def test_a_segment_that_got_worse_stops_a_better_candidate() -> None:
    def part(segment: str, pairs: PairCounts) -> Slice:
        agreement = Estimate(value=0.9, low=0.8, high=1.0, n=pairs.total)
        return Slice(segment=segment, agreement=agreement, pairs=pairs)

    slices = (
        part("refunds", PairCounts(wins=1, losses=14, ties=285)),
        part("cards", PairCounts(wins=39, losses=1, ties=260)),
        part("tiny", PairCounts(wins=0, losses=9, ties=1)),
    )
    report = judge(evaluation(slices=slices), POLICY, SECOND, turn=ALONE)
    assert failed(report) == {"segments"}
    assert named(report, "segments").sentence == "Worse than the champion on: refunds."


def test_labels_that_are_too_small_each_are_judged_together() -> None:
    """What 60 rare labels lose is not made good by what one frequent label gains."""
    gained = {"frequent": PairCounts(wins=90, losses=3, ties=900)}
    lost = {f"rare-{at}": PairCounts(wins=at % 3 == 0, losses=2, ties=18) for at in range(60)}
    report = judge(evaluation(by_label={**gained, **lost}), POLICY, SECOND, turn=ALONE)
    assert failed(report) == {"segments"}
    assert named(report, "segments").sentence == (
        "Worse than the champion on: the 60 labels with fewer than 200 items, taken together."
    )
    even = {label: PairCounts(wins=1, losses=1, ties=19) for label in lost}
    report = judge(evaluation(by_label={**gained, **even}), POLICY, SECOND, turn=ALONE)
    assert named(report, "segments").sentence == (
        "No segment has the 200 items that it takes to judge it alone. Nor did the 60 labels with "
        "fewer than 200 items, taken together; but a single one of 21 items could have lost "
        "13.3 % unseen."
    )


def with_flips(served: int, escalated: int) -> Evaluation:
    """600 items, 120 won; of the lost ones so many were answered above the threshold."""
    lost = served + escalated
    flips = tuple(
        Flip(
            event_id=f"e-{n}",
            text="",
            label="right",
            before="right",
            after="wrong",
            negative=True,
            served=n < served,
        )
        for n in range(lost)
    )
    pairs = PairCounts(wins=120, losses=lost, ties=480 - lost)
    return evaluation(items=600, pairs={CHAMPION: pairs}, flips=flips)


def test_negative_flips_stop_a_candidate_only_when_surely_above_the_budget() -> None:
    assert judge(with_flips(22, 0), POLICY, SECOND, turn=ALONE).promotable  # 3.7 %: may be 3 %
    report = judge(with_flips(36, 0), POLICY, SECOND, turn=ALONE)  # 6 %: is not 3 %
    assert failed(report) == {"negative_flips"}


def test_negative_flips_below_the_threshold_are_said_and_stop_nothing() -> None:
    report = judge(with_flips(10, 40), POLICY, SECOND, turn=ALONE)
    assert report.promotable
    said = named(report, "negative_flips").sentence
    assert said.startswith(
        "50 of 600 items (8.3 %) were right and are wrong now, 10 of them (1.7 %)"
    )


def test_a_gain_of_two_points_among_many_differences_passes_with_much_evidence() -> None:
    """A cap on all losses, 4 % here, refused most of these: the surer, the more items."""
    generator = np.random.default_rng(7)
    better = passed = refused_by_all_losses = 0
    for _ in range(20):
        champion = champion_marks(generator, 2_700, 0.88)
        candidate = candidate_marks(
            generator, champion, agreement=0.88, discordance=0.10, gain=0.02
        )
        figures = evaluate(
            held_out_items(2_700),
            answers("candidate", candidate),
            {CHAMPION: answers("champion", champion)},
            target=0.97,
        )
        report = judge(figures, POLICY, SECOND, turn=ALONE)
        assert named(report, "negative_flips").passed
        better += report.verdict == "better"
        passed += report.promotable
        refused_by_all_losses += exact_low(figures.pairs[CHAMPION].losses, 2_700, 0.05) > 0.03
    assert passed == better >= 12
    assert refused_by_all_losses >= 14


@pytest.mark.parametrize(
    ("lost", "sure", "refused"), [(100, 0.95, {"negative_flips"}), (240, 0.3, set())]
)
def test_a_better_candidate_that_is_newly_and_surely_wrong_is_refused(
    lost: int, sure: float, refused: set[str]
) -> None:
    is_lost = np.arange(2_000) < lost
    champion = Marks(np.full(2_000, 0.8), np.arange(2_000) < 1_600)
    candidate = Marks(np.where(is_lost, sure, 0.95), ~is_lost)
    figures = evaluate(
        held_out_items(2_000),
        answers("candidate", candidate),
        {CHAMPION: answers("champion", champion)},
        target=0.9,
    )
    assert failed(judge(figures, POLICY, SECOND, turn=ALONE)) == refused


def test_calibration_stops_a_candidate_only_beyond_chance() -> None:
    noisy = evaluation(calibration_error=Estimate(value=0.13, low=0.06, high=0.2, n=400))
    assert judge(noisy, POLICY, SECOND, turn=ALONE).promotable
    off = evaluation(calibration_error=Estimate(value=0.19, low=0.12, high=0.26, n=400))
    assert failed(judge(off, POLICY, SECOND, turn=ALONE)) == {"calibration"}


@pytest.mark.parametrize("measured", [None, math.nan, 30.1, -1.0])
def test_a_limit_that_is_set_has_to_be_measured_and_kept(measured: float | None) -> None:
    policy = GatePolicy(max_latency_ms=30.0, max_size_mb=5.0)
    facts = dataclasses.replace(SECOND, latency_ms=measured, size_mb=1.0)
    assert failed(judge(evaluation(), policy, facts, turn=ALONE)) == {"latency"}
    facts = dataclasses.replace(SECOND, latency_ms=12.0, size_mb=5.0)
    assert judge(evaluation(), policy, facts, turn=ALONE).promotable


def test_a_first_student_has_to_beat_majority_and_base() -> None:
    good = PairCounts(wins=60, losses=10, ties=130)
    weak = PairCounts(wins=30, losses=25, ties=145)
    both = evaluation(items=200, pairs={MAJORITY: good, BASE: good})
    assert judge(both, POLICY, FIRST, turn=ALONE).promotable
    report = judge(
        evaluation(items=200, pairs={MAJORITY: good, BASE: weak}), POLICY, FIRST, turn=ALONE
    )
    assert failed(report) == {"beats_base"}
    assert report.verdict == "insufficient_evidence"


def test_nearest_neighbour_is_shown_and_is_no_bar() -> None:
    good = PairCounts(wins=60, losses=10, ties=130)
    lost = PairCounts(wins=5, losses=60, ties=135)
    figures = evaluation(items=200, pairs={MAJORITY: good, BASE: good, "nearest": lost})
    assert judge(figures, POLICY, FIRST, turn=ALONE).promotable


@pytest.mark.parametrize(
    ("min_groups", "target", "needed"),
    [
        (150, 0.97, 297),
        (150, 0.90, 150),
        (150, 0.98, 300),
        (150, 0.995, 598),
        (30, 0.90, 87),
        (400, 0.97, 400),
    ],
)
def test_a_comparison_needs_what_the_target_takes(
    min_groups: int, target: float, needed: int
) -> None:
    good = PairCounts(wins=60, losses=10, ties=needed - 71)
    policy = GatePolicy(min_groups=min_groups)
    promised = dataclasses.replace(threshold(), target=target)
    pairs = {MAJORITY: good, BASE: good}
    few = evaluation(items=needed - 1, pairs=pairs, threshold=promised)
    report = judge(few, policy, FIRST, turn=ALONE)
    assert failed(report) == {"enough_items"}
    assert named(report, "enough_items").sentence.endswith(f"; {needed} are needed.")
    pairs = {bar: dataclasses.replace(good, ties=good.ties + 1) for bar in (MAJORITY, BASE)}
    enough = evaluation(items=needed, pairs=pairs, threshold=promised)
    assert judge(enough, policy, FIRST, turn=ALONE).promotable


# --- Fails closed ---


def closed_cases() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    nan = Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)
    yield "enough_items", {"items": 0, "pairs": {CHAMPION: PairCounts()}}, {}
    yield (
        "enough_items",
        {"items": 149, "pairs": {CHAMPION: PairCounts(wins=60, losses=1, ties=88)}},
        {},
    )
    yield "same_items", {"items": 401}, {}
    yield (
        "same_items",
        {"pairs": {CHAMPION: PairCounts(wins=60, losses=-10, ties=350)}},
        {},
    )
    yield "usable_answers", {"unusable_answers": 1}, {}
    yield "usable_answers", {"agreement": {"candidate": nan}}, {}
    yield "usable_answers", {"agreement": {}}, {}
    yield "calibration", {"calibration_error": nan}, {}
    yield "baseline", {"pairs": {BASE: PairCounts(wins=40, losses=8, ties=352)}}, {}
    yield "baseline", {}, {"champion_is_current": False}
    yield "baseline", {}, {"has_champion": False}
    yield "fresh", {}, {"evaluation_is_fresh": False}
    yield "untouched_items", {}, {"leaked_items": 2}
    yield "judgement", {"calibration_error": None}, {}
    yield "judgement", {"pairs": None}, {}


@pytest.mark.parametrize(("check", "changes", "facts"), list(closed_cases()))
def test_missing_or_broken_evidence_is_never_promotable(
    check: str, changes: dict[str, Any], facts: dict[str, Any]
) -> None:
    report = judge(evaluation(**changes), POLICY, dataclasses.replace(SECOND, **facts), turn=ALONE)
    assert check in failed(report)
    assert not report.promotable
    assert named(report, check).sentence


def test_no_evaluation_is_never_promotable() -> None:
    report = judge(None, POLICY, SECOND, turn=ALONE)
    assert not report.promotable
    assert not compared(report)


@pytest.mark.parametrize(
    "policy",
    [
        GatePolicy(alpha=math.nan),
        GatePolicy(alpha=0.0),
        GatePolicy(delta=math.nan),
        GatePolicy(min_groups=0),
        GatePolicy(max_negative_flips=math.nan),
        GatePolicy(max_calibration_error=2.0),
        GatePolicy(max_latency_ms=math.nan),
    ],
)
def test_a_broken_policy_promotes_nothing(policy: GatePolicy) -> None:
    facts = dataclasses.replace(SECOND, latency_ms=1.0)
    assert not judge(evaluation(), policy, facts, turn=ALONE).promotable


@pytest.mark.parametrize(("attempt", "look"), [(0, 1), (-1, 1), (1, 0)])
def test_impossible_counts_promote_nothing(attempt: int, look: int) -> None:
    assert not judge(
        evaluation(), POLICY, SECOND, turn=dataclasses.replace(ALONE, attempt=attempt, look=look)
    ).promotable


def test_a_candidate_that_answers_nan_is_not_promotable() -> None:
    items = held_out_items(200)
    right = Answers(name="c", labels=("right",) * 200, confidences=(math.nan,) * 200)
    wrong = Answers(name="w", labels=("wrong",) * 200, confidences=(0.5,) * 200)
    figures = evaluate(items, right, {CHAMPION: wrong}, target=0.9)
    assert failed(judge(figures, POLICY, SECOND, turn=ALONE)) == {"usable_answers"}
