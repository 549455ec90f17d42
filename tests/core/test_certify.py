"""The cascade threshold keeps its promise, and says in words why it cannot be given."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipelines.statistics.calibration import calibration_error
from pipelines.statistics.certify import (
    _allowed_by_parts,
    _certified_counts,
    _steps,
    _sums,
    certify_threshold,
    coverage_gain_p,
    errors_allowed,
    first_steps,
    items_needed,
)
from pipelines.statistics.coverage import CONFIDENCE_EDGES, confidence_bins


@pytest.mark.parametrize(("target", "items"), [(0.98, 149), (0.97, 99), (0.90, 29)])
def test_the_arithmetic_of_promises(target: float, items: int) -> None:
    assert items_needed(target) == items
    assert errors_allowed(items, target) == 0
    assert errors_allowed(items - 1, target) == -1


@pytest.mark.parametrize("items", [30, 157, 1_000])
def test_errors_allowed_agrees_with_scipy(items: int) -> None:
    allowed = errors_allowed(items, 0.97)
    assert stats.binom.cdf(allowed + 1, items, 0.03) > 0.05
    assert allowed < 0 or stats.binom.cdf(allowed, items, 0.03) <= 0.05


def test_a_sure_student_is_certified_on_all_that_was_seen() -> None:
    found = certify_threshold([0.95] * 300, [True] * 298 + [False] * 2, target=0.97)
    assert found.value == 0.95
    assert found.coverage == 1.0
    assert found.agreement_above is not None
    assert found.agreement_above.low >= 0.97
    assert "Of the 300 items" in found.reason


def test_the_threshold_separates_the_sure_from_the_unsure() -> None:
    confidences = [0.99] * 200 + [0.60] * 100
    found = certify_threshold(confidences, [True] * 200 + [False] * 100, target=0.97)
    assert found.value in CONFIDENCE_EDGES
    assert 0.60 < (found.value or 0.0) <= 0.99
    assert found.coverage == pytest.approx(200 / 300)
    assert found.agreement_above is not None
    assert found.agreement_above.n == 200


def test_the_sequence_stops_at_the_first_failure_even_if_a_looser_threshold_would_pass() -> None:
    confidences = [0.99] * 100 + [0.95] * 20 + [0.90] * 180
    right = [True] * 100 + [False] * 20 + [True] * 180
    found = certify_threshold(confidences, right, target=0.9)
    assert found.coverage == pytest.approx(100 / 300)
    assert errors_allowed(300, 0.9) >= 20


@pytest.mark.parametrize("floor_share", [0.02, 0.05, 0.2])
def test_a_certificate_reaches_only_as_low_as_its_evidence_did(floor_share: float) -> None:
    """Traffic that comes to lie lower was never looked at, however good the student was."""
    confidences = np.random.default_rng(8).beta(8, 1, 2_000)
    right = [True] * 2_000
    found = certify_threshold(confidences.tolist(), right, target=0.97, floor_share=floor_share)
    lowest = float(np.quantile(confidences, floor_share))
    assert found.value == CONFIDENCE_EDGES[confidence_bins([lowest])[0]]
    assert found.reason.endswith(
        f"No lower threshold is tested where {100 * (1 - floor_share):g} % of the items lie above."
    )
    stopped_by_errors = certify_threshold(
        [0.99] * 200 + [0.6] * 100, right[:200] + [False] * 100, target=0.97
    )
    assert "No lower" not in stopped_by_errors.reason


def test_no_threshold_lies_where_no_item_does() -> None:
    confidences = [0.99] * 200 + [0.60] * 100
    found = certify_threshold(confidences, [True] * 200 + [False] * 100, target=0.97)
    assert found.value == 0.99


@pytest.mark.parametrize("confidence", [0.0, 0.03, float("nan")])
def test_what_the_student_is_sure_to_be_wrong_about_is_never_certified(confidence: float) -> None:
    assert certify_threshold([confidence] * 500, [True] * 500, target=0.9).value is None
    mixed = certify_threshold([0.9] * 450 + [confidence] * 50, [True] * 500, target=0.9)
    assert mixed.value == 0.9


def test_too_few_items_are_named() -> None:
    found = certify_threshold([0.99] * 112, [True] * 112, target=0.98)
    assert found.value is None
    assert found.coverage == 0.0
    assert found.reason == (
        "98 % needs 149 items without an error above the threshold; there are 112 items."
    )


def test_too_few_items_where_the_floor_allows_are_named() -> None:
    confidences = [0.99] * 144 + [0.80] * 6
    found = certify_threshold(confidences, [True] * 150, target=0.98)
    assert found.reason == (
        "98 % needs 149 items without an error above the threshold; there are 150 items, "
        "144 of them above the lowest threshold that is tested."
    )


def test_too_many_errors_are_named() -> None:
    found = certify_threshold([0.99] * 200, [True] * 180 + [False] * 20, target=0.98)
    assert found.value is None
    assert "Even of the 200 most confident items" in found.reason
    assert "20 disagree with the teacher; 98 % allows 0." in found.reason


def test_a_noisy_teacher_cannot_certify_what_it_does_not_do_itself() -> None:
    right = np.random.default_rng(0).random(5_000) >= 0.02
    assert certify_threshold([0.999] * 5_000, right.tolist(), target=0.98).value is None


@pytest.mark.parametrize("target", [0.0, 1.0, 1.5, float("nan")])
def test_an_impossible_target_is_never_certified(target: float) -> None:
    assert certify_threshold([0.9] * 500, [True] * 500, target=target).value is None


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 confidences for 1 outcomes"):
        certify_threshold([0.9, 0.8], [True], target=0.9)


def test_nothing_is_certified_from_nothing() -> None:
    assert certify_threshold([], [], target=0.9).value is None


def test_one_error_among_the_surest_does_not_end_it() -> None:
    confidences = np.linspace(0.999, 0.80, 400).tolist()
    right = [index not in (3, 170, 290) for index in range(400)]
    assert first_steps(400, 0.97) == (133, 133, 133, 133)
    assert certify_threshold(confidences, right, target=0.95).coverage == 1.0


def test_alpha_enters_at_three_places_and_is_all_there_from_a_third_on() -> None:
    assert first_steps(150, 0.97) == (99, 99, 99, 99)  # few items: one place, all of alpha
    strictest, middle, main, again = first_steps(3_000, 0.97)
    assert (middle, main, again) == (4 * 99, 1_000, 1_000)
    assert strictest == items_needed(0.97, 1 - 0.05 / 4)


def certified(
    confidences: np.ndarray, share_right: np.ndarray, *, target: float, runs: int = 40
) -> float:
    """In what part of the tries such a student gets a threshold."""
    generator = np.random.default_rng(11)
    found = [
        certify_threshold(
            confidences.tolist(),
            (generator.random(confidences.size) < share_right).tolist(),
            target=target,
        )
        for _ in range(runs)
    ]
    return sum(one.value is not None for one in found) / runs


def test_a_teacher_that_errs_now_and_then_does_not_end_the_sequence() -> None:
    """The surest answers are no better than 97 %: at a strict start that is a coin toss."""
    confidences = np.random.default_rng(10).beta(7, 0.6, 3_000)
    share_right = np.where(confidences > 0.5, 0.97, 0.6)
    assert certified(confidences, share_right, target=0.95) >= 0.8


def test_a_student_whose_surest_tenth_alone_is_good_is_certified_on_that() -> None:
    confidences = np.random.default_rng(10).random(3_000)
    share_right = np.where(confidences > 0.9, 0.995, 0.85)
    assert certified(confidences, share_right, target=0.95) >= 0.8


def naive_threshold(confidences: np.ndarray, right: np.ndarray, target: float) -> float | None:
    """The smallest threshold whose own bound holds: what one must not do."""
    bins = confidence_bins(confidences)
    for edge in range(len(CONFIDENCE_EDGES)):
        above = bins >= edge
        items, wrong = int(above.sum()), int((above & ~right).sum())
        if items and stats.binom.cdf(wrong, items, 1 - target) <= 0.05:
            return CONFIDENCE_EDGES[edge]
    return None


# Agreement above a threshold t misses the target everywhere, or up to about one half.
@pytest.mark.parametrize(
    ("at_zero", "at_one", "honest_from"), [(0.97, 0.97, 1.1), (0.94, 0.98, 0.52)]
)
def test_false_certificates_are_as_rare_as_promised(
    at_zero: float, at_one: float, honest_from: float
) -> None:
    generator = np.random.default_rng(2)
    runs, ours, naive = 600, 0, 0
    for _ in range(runs):
        confidences = generator.random(600)
        right = generator.random(600) < at_zero + (at_one - at_zero) * confidences
        found = certify_threshold(confidences.tolist(), right.tolist(), target=0.9701).value
        ours += found is not None and found < honest_from
        naive += naive_threshold(confidences, right, 0.9701) is not None
    error = 2 * float(np.sqrt(0.05 * 0.95 / runs))
    assert ours / runs <= 0.05 + error
    if honest_from > 1.0:  # where every certificate is false, the naive rule gives too many
        assert naive / runs > 0.05 + error


def test_a_gain_of_coverage_between_equal_students_is_seldom_called_real() -> None:
    generator = np.random.default_rng(3)
    runs, called = 150, 0
    for run in range(runs):
        first, second = generator.beta(9, 0.6, (2, 300))
        p = coverage_gain_p(
            (first.tolist(), (generator.random(300) < first).tolist()),
            (second.tolist(), (generator.random(300) < second).tolist()),
            target=0.95,
            seed=run,
            swaps=499,
        )
        called += p <= 0.05
    assert called / runs <= 0.05 + 0.035


@pytest.mark.parametrize("share_right", [1.0, 0.96])
def test_a_gain_of_coverage_is_that_of_the_certified_thresholds(share_right: float) -> None:
    """The two ways to certify, one student and many at once, agree."""
    generator = np.random.default_rng(9)
    for _ in range(20):
        confidences = generator.beta(generator.uniform(2, 12), 0.6, 700)
        right = generator.random(700) < share_right
        found = certify_threshold(confidences.tolist(), right.tolist(), target=0.93)
        ours = _steps(confidences.tolist(), right.tolist())
        counted = _certified_counts(
            *_sums(ours), _allowed_by_parts(700, 0.93, 0.95), first_steps(700, 0.93)
        )
        assert counted[0] == round(700 * found.coverage)


def test_a_real_gain_of_coverage_is_recognized() -> None:
    generator = np.random.default_rng(4)
    right = generator.random(400) < 0.92
    sorted_out = np.where(right, 0.97, 0.5).tolist()
    mixed_up = generator.random(400).tolist()
    marks = right.tolist()
    better = coverage_gain_p((sorted_out, marks), (mixed_up, marks), target=0.97)
    worse = coverage_gain_p((mixed_up, marks), (sorted_out, marks), target=0.97)
    assert better < 0.001
    assert worse == 1.0


def test_a_perfect_student_shows_a_calibration_error_that_is_all_chance() -> None:
    generator = np.random.default_rng(5)
    values, wrongly_blamed, runs = [], 0, 200
    for run in range(runs):
        stated = generator.uniform(0.4, 1.0, 77)
        found = calibration_error(
            stated.tolist(), (generator.random(77) < stated).tolist(), seed=run
        )
        values.append(found.value)
        wrongly_blamed += found.low > 0.0
    assert np.mean(values) > 0.05
    assert wrongly_blamed / runs <= 0.05 + 0.03


def test_a_miscalibrated_student_is_seen_through_the_noise() -> None:
    generator = np.random.default_rng(6)
    stated = generator.uniform(0.8, 1.0, 600)
    found = calibration_error(stated.tolist(), (generator.random(600) < stated - 0.2).tolist())
    assert found.low > 0.1
    assert found.low < 0.2 < found.high


def test_calibration_of_unusable_confidences_is_unknown() -> None:
    assert np.isnan(calibration_error([0.5, float("nan")], [True, False]).low)
    assert np.isnan(calibration_error([], []).value)


def test_weights_of_one_change_nothing_but_the_words() -> None:
    confidences, correct = [0.99] * 300 + [0.3] * 50, [True] * 296 + [False] * 54
    plain = certify_threshold(confidences, correct, target=0.95)
    same = certify_threshold(confidences, correct, target=0.95, weights=[1.0] * 350)
    assert plain.value is not None
    assert replace(same, reason="") == replace(plain, reason="")


def test_an_item_counts_for_its_weight_rounded_against_the_student() -> None:
    confidences, correct = [0.99] * 101 + [0.3] * 50, [True] * 100 + [False] * 51
    weights = [3.005] * 100 + [0.2] + [1.0] * 50
    found = certify_threshold(confidences, correct, target=0.9, weights=weights)
    assert found.agreement_above is not None
    assert found.agreement_above.n == 300
    assert found.agreement_above.value == pytest.approx(299 / 300)
    assert found.coverage == pytest.approx(300 / 350)
    heavy = [*weights[:100], 60.0, *weights[101:]]
    assert certify_threshold(confidences, correct, target=0.9, weights=heavy).value is None
