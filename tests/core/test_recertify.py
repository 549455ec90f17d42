"""A threshold proven anew by audits: seldom false, and never looser than what was approved."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.statistics.coverage import CONFIDENCE_EDGES
from pipelines.statistics.recertify import ERROR_SHARES, recertify

TARGET = 0.97
APPROVED = 0.8


def proven(confidences: NDArray[np.float64], agrees: NDArray[np.bool_]) -> float | None:
    return recertify(
        confidences.tolist(), agrees.tolist(), approved=APPROVED, target=TARGET
    ).threshold


# Agreement is at the target above every edge; or above the target only from .98 on, at .98 on it.
@pytest.mark.parametrize("honest_from", [1.1, 0.98])
def test_false_proofs_are_as_rare_as_promised_at_all_looks_together(honest_from: float) -> None:
    generator = np.random.default_rng(1)
    runs, broken = 500, 0
    for _ in range(runs):
        confidences = generator.uniform(APPROVED, 1.0, 1_500)
        share = np.where(confidences >= honest_from, 1.0, TARGET)
        if honest_from < 1.0:  # so that what lies above .96 has the target, and above .98 more
            share = np.where((confidences >= 0.96) & (confidences < 0.98), 2 * TARGET - 1, share)
        agrees = generator.random(1_500) < share
        looks = [proven(confidences[:end], agrees[:end]) for end in (150, 300, 600, 1_000, 1_500)]
        broken += any(found is not None and found < honest_from for found in looks)
    assert 0 < broken / runs <= 0.05


def test_what_was_proven_once_stays_proven() -> None:
    """The loosest edge is the loosest of all looks: it is held by the most that wealth ever was."""
    agrees = np.array([True] * 200 + [False] * 100 + [True] * 400)
    found = [proven(np.full(end, 0.9), agrees[:end]) for end in (100, 200, 300, 700)]
    assert found == [None, 0.9, 0.9, 0.9]


@pytest.mark.parametrize(
    ("agreement", "least", "most"), [(1.0, 100, 150), (0.995, 120, 260), (0.985, 300, 1_500)]
)
def test_what_it_takes_to_prove_97_percent(agreement: float, least: int, most: int) -> None:
    generator = np.random.default_rng(2)
    taken = []
    for _ in range(60):
        agrees = generator.random(6_000) < agreement
        taken.append(
            next(
                end
                for end in range(10, 6_000, 10)
                if proven(np.full(end, 0.99), agrees[:end]) is not None
            )
        )
    assert least <= np.median(taken) <= most


def test_the_loosest_edge_that_still_agrees_is_found() -> None:
    generator = np.random.default_rng(3)
    found = []
    for _ in range(20):
        confidences = generator.uniform(APPROVED, 1.0, 6_000)
        agrees = generator.random(6_000) < np.where(confidences >= 0.92, 0.995, 0.85)
        found.append(proven(confidences, agrees))
    assert all(one is not None and 0.90 <= one <= 0.93 for one in found)


def test_it_is_never_looser_than_approved_and_less_sure_audits_do_not_count() -> None:
    generator = np.random.default_rng(4)
    confidences = generator.uniform(0.0, 1.0, 5_000)
    right = np.ones(5_000, dtype=bool)
    for approved in (0.5, 0.9, 0.905, 0.94):
        found = recertify(confidences.tolist(), right.tolist(), approved=approved, target=TARGET)
        assert found.threshold == min(edge for edge in CONFIDENCE_EDGES if edge >= approved)
    wrong_below = recertify(
        confidences.tolist(), (confidences >= 0.9).tolist(), approved=0.9, target=TARGET
    )
    assert wrong_below.threshold == 0.9
    assert wrong_below.audits == (confidences >= 0.9).sum()


@pytest.mark.parametrize("errors", [0, 1, 4])
@pytest.mark.parametrize("target", [0.9, 0.97])
def test_it_says_how_many_more_audits_without_an_error_are_needed(
    target: float, errors: int
) -> None:
    agrees = [index >= errors for index in range(20)]
    found = recertify([0.9] * 20, agrees, approved=APPROVED, target=target)
    assert found.threshold is None
    for more, threshold in ((found.needed - 1, None), (found.needed, 0.9)):
        later = recertify([0.9] * (20 + more), agrees + [True] * more, approved=0.8, target=target)
        assert later.threshold == threshold
    assert later.needed == 0
    if not errors:
        wealth = (1 - ERROR_SHARES * (1 - target)) / target
        assert np.mean(wealth ** (20 + found.needed)) >= 20 > np.mean(wealth ** (19 + found.needed))


def test_without_audits_nothing_is_proven() -> None:
    found = recertify([], [], approved=0.9995, target=TARGET)
    assert (found.threshold, found.audits) == (None, 0)
    assert 100 < found.needed < 150


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="1 confidences for 0 outcomes"):
        recertify([0.9], [], approved=0.8, target=TARGET)
    with pytest.raises(ValueError, match="can be proven"):
        recertify([], [], approved=0.8, target=1.0)
