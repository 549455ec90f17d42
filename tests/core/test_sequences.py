"""Evidence of a paired comparison may be looked at after every item."""

import math

import numpy as np
import pytest

from pipelines.statistics.sequences import pair_e_value
from pipelines.types import PairCounts


def test_the_e_value_rarely_gets_large_under_the_null() -> None:
    generator = np.random.default_rng(7)
    runs, crossed = 300, 0
    for _ in range(runs):
        outcomes = generator.choice(3, size=1_000, p=[0.05, 0.05, 0.9])
        steps = np.cumsum(np.eye(3, dtype=int)[outcomes], axis=0)[19::20]
        crossed += any(
            pair_e_value(PairCounts(wins=int(w), losses=int(lost), ties=int(t))) >= 20
            for w, lost, t in steps
        )
    assert crossed / runs <= 0.05 + 0.025


def test_the_e_value_with_a_margin_asks_less() -> None:
    pairs = PairCounts(wins=30, losses=20, ties=350)
    assert pair_e_value(pairs, margin=0.02) > pair_e_value(pairs)
    assert pair_e_value(PairCounts()) == pytest.approx(1.0)
    assert pair_e_value(PairCounts(wins=10_000)) == math.inf
