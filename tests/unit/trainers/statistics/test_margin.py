"""Margins: the test and the bound of the interval agree, in both directions of a metric."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.metrics.metric import MetricValues
from trainers.statistics.margin import check_margin


def shares(wins: int, losses: int, ties: int) -> tuple[MetricValues, MetricValues]:
    a = [1.0] * wins + [0.0] * losses + [1.0] * ties
    b = [0.0] * wins + [1.0] * losses + [1.0] * ties
    return MetricValues(0, a, "", is_share=True), MetricValues(0, b, "", is_share=True)


def test_an_equal_model_is_not_worse_than_two_points_only_with_enough_rows() -> None:
    few, many = (check_margin(*shares(n // 20, n // 20, n * 9 // 10), margin=0.02) for n in (100, 2000))
    assert (few.met, many.met) == (False, True)
    assert few.bound is not None
    assert many.bound is not None
    assert few.bound < -0.02 < many.bound < 0


def test_a_lower_value_is_better_where_the_metric_says_it() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    a = MetricValues(0, list(0.32 + noise), "", higher_is_better=False)
    b = MetricValues(0, [0.3] * 100, "", higher_is_better=False)
    worse = check_margin(a, b, margin=0.01)
    assert not worse.met
    assert worse.bound is not None
    assert worse.bound > worse.difference > 0.01
    assert check_margin(a, b, margin=0.06).met
    assert check_margin(b, a, margin=0.0).met


@given(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200)), st.floats(-0.5, 0.5))
def test_shares_meet_a_margin_exactly_if_their_bound_does(
    counts: tuple[int, int, int], margin: float
) -> None:
    result = check_margin(*shares(*counts), margin=margin)
    assert result.bound is not None
    if abs(result.bound + margin) > 1e-6:
        assert result.met == (result.bound > -margin)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-1, 1), st.booleans())
@settings(deadline=None, max_examples=50)
def test_means_meet_a_margin_exactly_if_their_bound_does(
    differences: list[float], margin: float, higher: bool
) -> None:
    zeros = MetricValues(0, [0.0] * len(differences), "", higher_is_better=higher)
    result = check_margin(MetricValues(0, differences, "", higher_is_better=higher), zeros, margin=margin)
    bound = -math.inf if result.bound is None else result.bound if higher else -result.bound
    assert result.met == (bound > -margin)


@pytest.mark.parametrize("rows", [[], [None], [0.5]])
def test_too_few_rows_meet_no_margin(rows: list[float | None]) -> None:
    values = MetricValues(0, rows, "")
    result = check_margin(values, values, margin=0.1)
    assert (result.met, result.bound) == (False, None)
