"""Small groups judged together: calibrated where none got worse, and not blind where many did."""

import numpy as np
import pytest

from pipelines.statistics.groups import hidden_loss, worse_in_some_group
from pipelines.types import PairCounts


def groups(generator: np.random.Generator, lost: np.ndarray, differing: int) -> list[PairCounts]:
    """One group for each chance of a loss, of about so many pairs that differ."""
    sizes = generator.poisson(differing, size=len(lost))
    losses = generator.binomial(sizes, lost)
    return [
        PairCounts(wins=int(of - one), losses=int(one), ties=20)
        for one, of in zip(losses, sizes, strict=True)
    ]


@pytest.mark.parametrize("differing", [1, 4])
def test_equal_students_are_called_worse_as_seldom_as_was_asked(differing: int) -> None:
    generator = np.random.default_rng(1)
    fair = np.full(77, 0.5)
    found = [worse_in_some_group(groups(generator, fair, differing)) <= 0.05 for _ in range(300)]
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_gains_elsewhere_do_not_hide_losses_in_some_labels() -> None:
    """Eight labels of 77 lose, the rest gains: better on average, and found worse."""
    generator = np.random.default_rng(2)
    chances = np.full(77, 0.25)
    chances[:8] = 0.9
    worlds = [groups(generator, chances, 6) for _ in range(60)]
    assert np.mean([worse_in_some_group(world) <= 0.05 for world in worlds]) > 0.5
    assert all(
        sum(one.wins for one in world) > sum(one.losses for one in world) for world in worlds
    )


def test_a_true_gain_spread_evenly_passes() -> None:
    generator = np.random.default_rng(3)
    worlds = [groups(generator, np.full(77, 0.3), 2) for _ in range(60)]
    assert np.mean([worse_in_some_group(world) <= 0.05 for world in worlds]) < 0.01


def test_nothing_that_differs_is_no_evidence() -> None:
    assert worse_in_some_group([]) == worse_in_some_group([PairCounts(ties=30)] * 4) == 1.0
    # A fair coin three times: 1/8 that all are losses, in two groups alike.
    assert worse_in_some_group([PairCounts(losses=3)]) == pytest.approx(0.125, abs=0.02)


def test_so_much_could_be_lost_unseen() -> None:
    assert hidden_loss(20, 0.05) == pytest.approx(0.139, abs=1e-3)
    assert hidden_loss(1, 0.05) == pytest.approx(0.95)
