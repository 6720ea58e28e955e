"""Permutation tests against scipy and sacreBLEU, and their agreement with the interval."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trainers.statistics.paired_tests.permutation import (
    MAX_BLOCKS,
    PermutationTest,
    corpus_permutation_test,
    mean_permutation_test,
)

DIFFERENCES = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=40)


def mean_test(
    differences: Sequence[float], clusters: Sequence[int] | None = None, resamples: int = 999
) -> PermutationTest:
    cluster_of = np.arange(len(differences)) if clusters is None else np.array(clusters)
    return mean_permutation_test(np.array(differences, dtype=float), cluster_of, resamples=resamples)


def excludes(test: PermutationTest, difference: float, alpha: float) -> bool:
    interval = test.interval(alpha)
    return interval is not None and not interval[0] <= difference <= interval[1]


@given(DIFFERENCES, st.floats(0.001, 0.99))
@settings(deadline=None)
def test_p_is_at_most_alpha_exactly_if_the_interval_excludes_0(
    differences: list[float], alpha: float
) -> None:
    test = mean_test(differences)
    for level in (alpha, 0.05, test.p_value()):
        if level < 1:
            assert (test.p_value() <= level) == excludes(test, 0.0, level)


@given(DIFFERENCES, st.floats(0.01, 0.9), st.floats(-100, 100))
@settings(deadline=None)
def test_a_difference_is_rejected_exactly_if_it_is_outside_of_the_interval(
    differences: list[float], alpha: float, difference: float
) -> None:
    test = mean_test(differences)
    assert (test.p_value(difference) <= alpha) == excludes(test, difference, alpha)


@given(DIFFERENCES)
@settings(deadline=None)
def test_the_interval_contains_the_estimate(differences: list[float]) -> None:
    test = mean_test(differences)
    assert not excludes(test, test.estimate, 0.05)


def test_few_rows_are_tested_with_every_exchange() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, 12)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert mean_test(differences, resamples=9_999).p_value() == pytest.approx(expected.pvalue)


def test_the_interval_of_few_rows_is_the_inverted_test_of_every_exchange() -> None:
    differences = np.random.default_rng(1).normal(0.4, 1, 10)
    signs = np.array(list(itertools.product((1, -1), repeat=10)))
    lower, upper = mean_test(differences, resamples=9_999).interval() or (0.0, 0.0)
    for shift, rejected in ((lower - 1e-6, True), (lower + 1e-6, False), (upper + 1e-6, True)):
        flipped = np.abs((signs * (differences - shift)).mean(axis=1))
        p = (flipped >= abs((differences - shift).mean()) - 1e-12).mean()
        assert (p <= 0.05) == rejected


def test_many_rows_give_the_p_value_and_the_interval_of_students_test() -> None:
    differences = np.random.default_rng(2).normal(0.05, 1, 2000)
    test, expected = mean_test(differences, resamples=9_999), stats.ttest_1samp(differences, 0)
    assert test.p_value() == pytest.approx(expected.pvalue, abs=0.01)
    assert test.interval() == pytest.approx(expected.confidence_interval(), abs=0.003)


def test_equal_sums_count_as_equal() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in binary: the differences are thirds in the same way.
    differences = [1 / 3, 1 / 3, -2 / 3, 1 / 3, 2 / 3, 1 / 3]
    exact = mean_test([1, 1, -2, 1, 2, 1])
    assert mean_test(differences).p_value() == exact.p_value()


def test_0_and_1_scores_give_the_exact_test_of_mcnemar() -> None:
    differences = [1] * 9 + [-1] * 2 + [0] * 2
    assert mean_test(differences, resamples=9_999).p_value() == pytest.approx(stats.binomtest(9, 11).pvalue)


def test_rows_of_a_cluster_are_exchanged_together() -> None:
    rows = [0.5, 0.2, 0.9, 0.4, -0.1, 0.3, 0.6]
    assert mean_test(rows * 20).p_value() == 0.001
    assert mean_test(rows * 20, list(range(7)) * 20).p_value() == mean_test(rows).p_value()


def test_more_clusters_than_blocks_give_the_same_answer_within_its_error() -> None:
    differences = np.random.default_rng(3).normal(0.02, 1, 3 * MAX_BLOCKS + 5)
    expected = stats.ttest_1samp(differences, 0)
    test = mean_test(differences)
    assert test.p_value() == pytest.approx(expected.pvalue, abs=0.05)
    assert test.interval() == pytest.approx(expected.confidence_interval(), abs=0.005)


def test_the_result_depends_on_the_seed_alone_and_its_digits_are_fixed() -> None:
    differences = [((7 * i) % 11 - 4.6) / 3 for i in range(25)]
    test = mean_test(differences)
    assert test.p_value() == 0.764
    assert test.interval() == pytest.approx((-0.36666666666667, 0.50833333333333), abs=1e-12)
    assert test.interval() == mean_test(differences).interval()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_rows_decide_nothing(n: int) -> None:
    test = mean_test([3.0] * n)
    assert test.interval() is None
    assert test.p_value() == 2 ** (1 - n)


def test_rows_without_a_difference_have_p_1_and_no_width() -> None:
    test = mean_test([0.0] * 30)
    assert test.p_value() == 1
    assert test.interval() == pytest.approx((0, 0), abs=1e-12)


def test_a_corpus_metric_that_is_a_mean_is_tested_as_a_mean() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    counted_a, counted_b = (np.column_stack([values, np.ones(40)]) for values in (a, b))
    corpus = corpus_permutation_test(
        counted_a, counted_b, lambda sums: sums[:, 0] / sums[:, 1], np.arange(40), resamples=999
    )
    mean = mean_test(a - b)
    assert corpus.p_value() == mean.p_value()
    assert corpus.interval() == pytest.approx(mean.interval())
