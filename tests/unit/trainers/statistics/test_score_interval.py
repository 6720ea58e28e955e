"""Intervals of one model's score, against other libraries."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from trainers.metrics.metric import CorpusStatistics, MetricValues
from trainers.statistics.score_interval import score_interval
from trainers.statistics.wilson import wilson_interval


def values(row_values: Sequence[float | None], *, share: bool = False) -> MetricValues:
    return MetricValues(0.0, row_values, "test", is_share=share)


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (1, 29), (15, 148), (700, 1319), (30, 30)])
def test_a_share_has_the_interval_of_statsmodels(correct: int, n: int) -> None:
    for alpha in (0.05, 0.2):
        expected = proportion_confint(correct, n, alpha, method="wilson")
        assert wilson_interval(correct, n, alpha) == pytest.approx(expected)
    rows = [*[1.0] * correct, *[0.0] * (n - correct), None, float("nan")]
    assert score_interval(values(rows, share=True)) == pytest.approx(wilson_interval(correct, n))


def test_a_mean_has_students_interval() -> None:
    rows = np.random.default_rng(0).gamma(1, 2, 40)
    expected = stats.ttest_1samp(rows, 0).confidence_interval(0.95)
    assert score_interval(values(list(rows))) == pytest.approx(expected)


def test_a_clustered_mean_has_the_robust_standard_error_of_statsmodels() -> None:
    rng = np.random.default_rng(1)
    clusters: npt.NDArray[np.int64] = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    rows = rng.normal(0, 1, 30)[clusters] + rng.normal(0, 1, len(clusters))
    fit = sm.OLS(rows, np.ones(len(rows))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    half = stats.t.ppf(0.975, 29) * fit.bse[0] * np.sqrt(30 / 29)
    lower, upper = score_interval(values(list(rows)), clusters=list(clusters)) or (0.0, 0.0)
    assert (lower, upper) == pytest.approx((rows.mean() - half, rows.mean() + half))


def test_rows_that_repeat_others_do_not_narrow_the_interval_of_a_share() -> None:
    once = [1.0] * 30 + [0.0] * 20
    clusters = list(range(50))
    lower, upper = score_interval(values(once * 10, share=True), clusters=clusters * 10) or (0.0, 0.0)
    assert (lower, upper) == pytest.approx(wilson_interval(30, 50), abs=0.01)
    all_right = score_interval(values([1.0] * 500, share=True), clusters=clusters * 10)
    assert all_right == pytest.approx(wilson_interval(50, 50))


def test_a_corpus_metric_that_is_a_mean_has_the_interval_of_the_mean() -> None:
    rows = np.random.default_rng(2).normal(3, 1, 50)
    corpus = CorpusStatistics([(value, 1.0) for value in rows], lambda sums: sums[0] / sums[1])
    metric = MetricValues(rows.mean(), list(rows), "test", corpus=corpus)
    assert score_interval(metric) == pytest.approx(score_interval(values(list(rows))))


def test_a_ratio_has_the_interval_of_the_delta_method() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(5, 40, 400).astype(float)
    errors = lengths * rng.uniform(0, 0.6, 400)
    corpus = CorpusStatistics(np.column_stack([errors, lengths]).tolist(), lambda sums: sums[0] / sums[1])
    ratio = errors.sum() / lengths.sum()
    error = np.sqrt(((errors - ratio * lengths) ** 2).sum()) / lengths.sum()
    lower, upper = score_interval(MetricValues(ratio, [0.0] * 400, "", corpus=corpus)) or (0.0, 0.0)
    assert (lower, upper) == pytest.approx((ratio - 1.966 * error, ratio + 1.966 * error), abs=2e-4)


@pytest.mark.parametrize("rows", [[], [None, float("nan")], [0.4]])
def test_too_few_rows_have_no_interval(rows: list[float | None]) -> None:
    assert score_interval(values(rows)) is None


def test_one_right_row_has_the_interval_of_wilson_and_constant_values_have_no_width() -> None:
    assert score_interval(values([1.0], share=True)) == pytest.approx(wilson_interval(1, 1))
    assert score_interval(values([0.7] * 9)) == pytest.approx((0.7, 0.7))


def test_the_interval_of_few_rows_stays_on_the_scale_of_the_metric() -> None:
    def score(*rows: float) -> MetricValues:
        return MetricValues(sum(rows) / len(rows), rows, "test", lowest=0.0, highest=1.0)

    assert score_interval(score(0.0, 1.0, 0.9)) == (0.0, 1.0)
    lower, upper = score_interval(score(0.0, 0.1, 0.2)) or (0.0, 0.0)
    assert (lower, upper) == pytest.approx((0.0, 0.1 + stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)))


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe, 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize("n", range(1, 50))
def test_wilson_interval_of_none_or_all_reaches_the_share(n: int) -> None:
    assert wilson_interval(0, n)[0] == 0
    assert wilson_interval(n, n)[1] == 1


def test_wilson_interval_without_rows_knows_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
