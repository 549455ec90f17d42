"""Trusted coverage is read from the histogram, and never overstated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.statistics.coverage import (
    CONFIDENCE_BINS,
    CONFIDENCE_EDGES,
    confidence_bin,
    confidence_bins,
    confidence_histogram,
    coverage_drop,
    trusted_coverage,
)


def test_the_edges_rise_from_zero_and_are_finest_near_one() -> None:
    assert CONFIDENCE_EDGES[0] == 0.0
    assert CONFIDENCE_EDGES[-1] < 1.0
    assert all(np.diff(CONFIDENCE_EDGES) > 0)
    assert np.diff(CONFIDENCE_EDGES)[-1] < np.diff(CONFIDENCE_EDGES)[0]
    assert 40 <= CONFIDENCE_BINS <= 60


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)))
def test_one_and_many_confidences_fall_into_the_same_bins(values: list[float]) -> None:
    assert [confidence_bin(value) for value in values] == confidence_bins(values).tolist()


@pytest.mark.parametrize("edge", range(CONFIDENCE_BINS))
def test_a_confidence_on_an_edge_is_at_or_above_it(edge: int) -> None:
    assert confidence_bin(CONFIDENCE_EDGES[edge]) == edge
    assert confidence_bin(math.nextafter(CONFIDENCE_EDGES[edge], -1.0)) == max(edge - 1, 0)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.01, math.inf])
def test_what_is_no_probability_is_trusted_least(value: float) -> None:
    assert confidence_bin(value) == 0


@given(st.lists(st.floats(0, 1), min_size=1), st.sampled_from(CONFIDENCE_EDGES))
def test_coverage_is_the_share_at_or_above_the_threshold(
    values: list[float], threshold: float
) -> None:
    found = trusted_coverage(confidence_histogram(values), threshold)
    assert found.value == pytest.approx(sum(v >= threshold for v in values) / len(values))
    assert found.low <= found.value <= found.high
    assert found.n == len(values)


def test_between_two_edges_coverage_is_understated() -> None:
    counts = confidence_histogram([0.95] * 10 + [0.97] * 10)
    assert trusted_coverage(counts, 0.955).value == 0.5


def test_without_a_threshold_nothing_is_trusted() -> None:
    found = trusted_coverage(confidence_histogram([0.99] * 10), None)
    assert (found.value, found.low, found.high, found.n) == (0.0, 0.0, 0.0, 10)


def test_no_traffic_has_no_coverage() -> None:
    found = trusted_coverage([0] * CONFIDENCE_BINS, 0.9)
    assert math.isnan(found.value)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


def test_a_histogram_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="bins"):
        trusted_coverage([1, 2, 3], 0.9)


def test_a_drop_counts_only_beyond_its_interval() -> None:
    few = trusted_coverage(confidence_histogram([0.99] * 7 + [0.1] * 3), 0.9)
    many = trusted_coverage(confidence_histogram([0.99] * 700 + [0.1] * 300), 0.9)
    assert coverage_drop(0.85, few) == 0.0
    assert 0.10 < coverage_drop(0.85, many) < 0.15
    assert coverage_drop(0.5, many) == 0.0
    assert coverage_drop(0.5, trusted_coverage([0] * CONFIDENCE_BINS, 0.9)) == 0.0
