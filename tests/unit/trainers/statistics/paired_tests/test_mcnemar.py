"""Paired 0/1 scores: the test against other libraries, and its agreement with the interval."""

import evalstats.tests
import numpy as np
import pytest
from evalstats.core.resampling import tango_scc_paired_ci
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from trainers.statistics.paired_tests.mcnemar import McNemarTest, mid_p

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
TABLES = [(0, 1, 9), (4, 0, 30), (12, 5, 100), (64, 16, 1319), (300, 240, 2000)]


def scores(wins: int, losses: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    ones, zeros = np.ones(n), np.zeros(n)
    return np.r_[ones[:wins], zeros[wins:]], np.r_[zeros[:wins], ones[:losses], zeros[wins + losses :]]


@pytest.mark.parametrize(("wins", "losses", "n"), TABLES)
def test_mid_p_is_that_of_evalstats_and_below_the_exact_p_of_statsmodels(
    wins: int, losses: int, n: int
) -> None:
    exact = mcnemar([[0, wins], [losses, n - wins - losses]], exact=True).pvalue
    half = stats.binom.pmf(min(wins, losses), wins + losses, 0.5)
    assert mid_p(wins, losses) == pytest.approx(exact - half)
    assert mid_p(wins, losses) == pytest.approx(evalstats.tests._mcnemar_midp_p(*scores(wins, losses, n)))


@pytest.mark.parametrize(("wins", "losses", "n"), [*TABLES[2:], (0, 0, 30), (0, 0, 1000)])
def test_the_interval_is_tangos_to_the_resolution_of_mid_p(wins: int, losses: int, n: int) -> None:
    tango = tango_scc_paired_ci(*scores(wins, losses, n), alpha=0.05, c=0)
    assert McNemarTest(wins, losses, n).interval() == pytest.approx(tango, abs=0.15 / n)


@given(COUNTS, st.floats(1e-6, 0.99))
def test_p_is_at_most_alpha_exactly_if_the_interval_excludes_0(
    counts: tuple[int, int, int], alpha: float
) -> None:
    wins, losses, ties = counts
    test = McNemarTest(wins, losses, max(1, wins + losses + ties))
    for level in (alpha, 0.05, test.p_value()):
        if level < 1:
            lower, upper = test.interval(level)
            assert (test.p_value() <= level) == (lower > 0 or upper < 0)


@given(COUNTS, st.floats(-0.99, 0.99), st.floats(0.001, 0.9))
def test_a_difference_is_rejected_exactly_if_it_is_outside_of_the_interval(
    counts: tuple[int, int, int], difference: float, alpha: float
) -> None:
    wins, losses, ties = counts
    test = McNemarTest(wins, losses, max(1, wins + losses + ties))
    lower, upper = test.interval(alpha)
    if min(abs(difference - lower), abs(difference - upper), abs(difference)) > 1e-6:
        assert (test.p_value(difference) <= alpha) == (difference < lower or difference > upper)


@given(COUNTS)
def test_the_interval_contains_the_estimate_and_mirrors_that_of_the_exchanged_models(
    counts: tuple[int, int, int],
) -> None:
    wins, losses, ties = counts
    n = max(1, wins + losses + ties)
    lower, upper = McNemarTest(wins, losses, n).interval()
    assert -1 <= lower <= (wins - losses) / n <= upper <= 1
    assert McNemarTest(losses, wins, n).interval() == pytest.approx((-upper, -lower), abs=1e-9)


def test_p_is_above_0_for_overwhelming_evidence_and_1_without_any() -> None:
    assert 0 < McNemarTest(5000, 0, 5000).p_value() < 1e-100
    assert McNemarTest(0, 0, 30).p_value() == 1
    assert McNemarTest(7, 7, 30).p_value() == 1


def test_identical_models_have_an_interval_that_shrinks_with_the_rows() -> None:
    assert McNemarTest(0, 0, 30).interval()[1] == pytest.approx(0.1135, abs=1e-4)
    assert McNemarTest(0, 0, 3000).interval()[1] == pytest.approx(0.00128, abs=1e-5)
