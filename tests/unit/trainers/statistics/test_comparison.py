"""The comparison of models: which test decides, what is counted, and inputs without information."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu.significance
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from statsmodels.stats.multitest import multipletests

from trainers.metrics.metric import CorpusStatistics, MetricValues
from trainers.statistics.adjustment import adjust_holm
from trainers.statistics.comparison import compare, compare_models, paired_test

Values = Sequence[float | None]


def values(row_values: Values, *, share: bool = False, higher: bool = True) -> MetricValues:
    known = [value for value in row_values if value is not None]
    mean = sum(known) / max(1, len(known))
    return MetricValues(mean, row_values, "test", higher_is_better=higher, is_share=share)


def bleu(responses: list[str], references: list[str]) -> MetricValues:
    metric = BLEU()
    rows = metric._extract_corpus_statistics(responses, [references])

    def compute(sums: Sequence[float]) -> float:
        return float(metric._compute_score_from_stats(sums).score)

    return MetricValues(
        metric.corpus_score(responses, [references]).score,
        [compute(row) for row in rows],
        str(metric.get_signature()),
        corpus=CorpusStatistics(rows, compute),
    )


def sentences(n: int, without: int) -> list[str]:
    """Return sentences of which every `without`-th word is missing."""
    words = [[f"w{(i * i + 3 * j) % 19}" for j in range(5 + i % 9)] for i in range(n)]
    return [" ".join(w for j, w in enumerate(line) if (i + j) % without) for i, line in enumerate(words)]


def test_shares_are_decided_by_mcnemar_and_counted() -> None:
    result = compare(values([1] * 20 + [0] * 10, share=True), values([0] * 12 + [1] * 18, share=True))
    assert (result.n, result.wins, result.losses, result.ties) == (30, 12, 10, 8)
    assert result.method.startswith("McNemar")
    assert result.difference == pytest.approx(2 / 30)
    assert result.verdict == "undecided"


def test_a_lower_value_is_better_where_the_metric_says_it() -> None:
    errors = np.random.default_rng(0).uniform(0, 1, 60)
    result = compare(values(list(errors), higher=False), values(list(errors + 0.2), higher=False))
    assert result.difference == pytest.approx(-0.2)
    assert result.verdict == "better"
    assert (result.wins, result.losses) == (60, 0)


def test_a_corpus_metric_has_the_p_value_of_sacrebleus_approximate_randomization() -> None:
    references = sentences(50, 99)
    a, b = sentences(50, 5), sentences(50, 4)
    expected = sacrebleu.significance.PairedTest(
        [("b", b), ("a", a)], {"BLEU": BLEU()}, [references], test_type="ar", n_samples=4000, n_jobs=1
    )()[1]["BLEU"]
    result = compare(bleu(a, references), bleu(b, references))
    assert result.difference == pytest.approx(expected[1].score - expected[0].score)
    assert result.p_value == pytest.approx(expected[1].p_value, abs=0.02)
    assert (result.p_value <= 0.05) == (result.interval_95 is not None and result.interval_95[0] > 0)


def test_rows_without_a_finite_value_for_both_are_excluded_and_counted() -> None:
    a = values([0.5, None, math.nan, 0.7, math.inf, 0.1] + [0.3] * 8)
    b = values([0.4, 0.2, 0.3, None, 0.3, 0.2] + [0.3] * 8)
    result = compare(a, b)
    assert (result.n, result.excluded, result.wins, result.losses, result.ties) == (10, 4, 1, 1, 8)
    assert result.difference == pytest.approx(0)


def test_clusters_decide_how_many_rows_count() -> None:
    a, b = values([1] * 60 + [0] * 60, share=True), values([0] * 60 + [0] * 60, share=True)
    documents = [row // 20 for row in range(120)]
    assert compare(a, b).verdict == "better"
    result = compare(a, b, clusters=documents)
    assert result.method.startswith("paired permutation")
    assert (result.verdict, result.p_value) == ("undecided", 8 / 32)


def test_few_differing_rows_have_an_interval_for_unseen_differences() -> None:
    rows = list(np.linspace(20, 80, 240))
    equal = compare(values(rows), values(rows))
    assert (equal.p_value, equal.difference, equal.verdict) == (1, 0, "undecided")
    assert equal.interval_95 == pytest.approx((-60 * 3.84 / 243.84, 60 * 3.84 / 243.84), abs=1e-3)
    few = compare(values([rows[0] + 9, rows[1] + 3, *rows[2:]]), values(rows))
    assert few.p_value == pytest.approx(0.5, abs=0.02)
    assert few.interval_95 is not None
    assert equal.interval_95 is not None
    assert few.interval_95[0] < 0.05 < equal.interval_95[1] < few.interval_95[1]


@given(st.lists(st.sampled_from([0.0] * 12 + [0.5, -0.25, 0.1, 1.0]), min_size=6, max_size=40))
@settings(deadline=None, max_examples=40)
def test_sparse_differences_are_rejected_exactly_outside_of_the_interval(differences: list[float]) -> None:
    test = paired_test(values(differences), values([0.0] * len(differences)))
    for alpha in (0.05, 0.1, 0.3):
        interval = test.interval(alpha)
        for null in (0.0, 0.2, -0.1, test.estimate):
            excluded = interval is not None and not interval[0] <= null <= interval[1]
            assert (test.p_value(null) <= alpha) == excluded


def test_no_rows_give_a_result_that_decides_nothing() -> None:
    result = compare(values([None, 0.1]), values([0.3, None]))
    assert (result.n, result.excluded, result.p_value, result.interval_95) == (0, 2, 1.0, None)
    assert (result.verdict, result.detectable) == ("undecided", None)


def test_no_difference_is_larger_than_the_scale() -> None:
    rows, others = [*[1.0] * 5, 0.5], [*[0.0] * 5, 0.5]
    lower, upper = compare(values(rows), values(others)).interval_95 or (0.0, 0.0)
    assert upper > 1
    a, b = (replace(values(each), lowest=0.0, highest=1.0) for each in (rows, others))
    assert compare(a, b).interval_95 == (lower, 1.0)
    assert compare(b, a).interval_95 == pytest.approx((-1.0, -lower))


def test_models_with_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 rows"):
        compare(values([1, 2, 3]), values([1, 2]))
    with pytest.raises(ValueError, match="2 cluster keys for 3 rows"):
        compare(values([1, 2, 3]), values([1, 2, 3]), clusters=["a", "b"])


ROWS = st.lists(
    st.tuples(*[st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0]))] * 2, st.integers(0, 5)),
    max_size=30,
)


@given(ROWS, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_values_have_a_result_whose_parts_agree(
    rows: list[tuple[float | None, float | None, int]], share: bool, clustered: bool
) -> None:
    clusters = [row[2] for row in rows] if clustered else None
    a, b = (values([row[i] for row in rows], share=share) for i in (0, 1))
    result = compare(a, b, clusters=clusters)
    assert 0 < result.p_value <= 1
    assert math.isfinite(result.difference)
    assert result.wins + result.losses + result.ties == result.n == len(rows) - result.excluded
    lower, upper = result.interval_95 or (-math.inf, math.inf)
    assert (result.p_value <= 0.05) == (lower > 0 or upper < 0)
    assert lower <= result.difference + 1e-9 * abs(result.difference)


@pytest.mark.parametrize("p_values", [[0.3], [0.01, 0.04, 0.03], [0.2, 0.9, 0.02, 0.02, 0.001, 0.6]])
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert adjust_holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_the_first_model_is_compared_with_all_others_and_adjusted() -> None:
    rng = np.random.default_rng(5)
    base = rng.integers(0, 2, 200)
    better = np.where(rng.random(200) < 0.06, 1, base)
    models = {
        "model": {"exact": values(list(better), share=True), "chrf": values(list(better + rng.random(200)))},
        "baseline": {"exact": values(list(base), share=True), "chrf": values(list(base + rng.random(200)))},
        "other": {"exact": values(list(better), share=True)},
    }
    results = compare_models(models)
    assert [(r.role, r.other, r.metric) for r in results] == [
        ("model", "baseline", "exact"), ("model", "baseline", "chrf"), ("model", "other", "exact"),
    ]  # fmt: skip
    assert [r.p_adjusted for r in results] == adjust_holm([r.p_value for r in results])
    alone = compare(models["model"]["exact"], models["baseline"]["exact"])
    assert results[0].p_value == alone.p_value < results[0].p_adjusted
    assert (results[0].detectable or 0) > (alone.detectable or 1)


def test_a_model_without_others_has_no_differences() -> None:
    assert compare_models({"model": {"exact": values([1, 0], share=True)}}) == []


def test_the_test_behind_a_comparison_answers_other_questions() -> None:
    test = paired_test(values([1] * 40 + [0] * 10, share=True), values([0] * 30 + [1] * 20, share=True))
    assert test.p_value(test.estimate) == pytest.approx(1)
    narrow, wide = test.interval(0.5), test.interval(0.01)
    assert wide is not None
    assert narrow is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
