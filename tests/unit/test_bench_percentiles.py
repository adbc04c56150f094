"""Percentiles are values that were measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.percentiles import percentile


def test_percentiles_of_a_hundred_values_are_their_ranks() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]


def test_one_value_is_every_percentile_and_none_is_zero() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([], 99) == 0.0


def test_a_percent_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        percentile([1.0], 101)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_at_least_that_share_does_not_exceed_it(values: list[float], percent: float) -> None:
    values.sort()
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9
