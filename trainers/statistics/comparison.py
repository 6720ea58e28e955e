"""Comparisons of models on the same rows."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainers.evaluation.results import PairedDifference
from trainers.metrics.metric import CorpusStatistics, MetricValues
from trainers.statistics.adjustment import adjust_holm
from trainers.statistics.corpus import compute_many, jackknife, statistics_of
from trainers.statistics.paired_tests.mcnemar import McNemarTest
from trainers.statistics.paired_tests.paired_test import Interval, PairedTest, cut
from trainers.statistics.paired_tests.permutation import (
    corpus_permutation_test,
    mean_permutation_test,
)
from trainers.statistics.paired_tests.sparse import allow_for_unseen
from trainers.statistics.pairs import Pairs, pair_rows
from trainers.statistics.power import detectable_mean, detectable_share
from trainers.statistics.spread import spread_of_difference

Verdict = Literal["better", "worse", "undecided"]

ALPHA = 0.05
"""A difference counts if its adjusted p-value is at most this."""


def compare(
    a: MetricValues,
    b: MetricValues,
    *,
    metric: str = "metric",
    role: str = "model",
    other: str = "baseline",
    clusters: Sequence[Hashable] | None = None,
    comparisons: int = 1,
    seed: int = 0,
) -> PairedDifference:
    """Return the paired difference of two models on one metric, `a` minus `b`.

    0/1 scores are decided by McNemar's mid-p test, others and clustered ones by a permutation test. The
    interval excludes 0 exactly if p is at most 5 %. The result depends on the values and the seed alone.

    Args:
        a: Values of the model whose difference it is.
        b: Values of the other model, for the same rows in the same order. Rows for which one of the models
            has no finite value are excluded and counted.
        metric: Name of the metric, for the result.
        role: Name of the model, for the result.
        other: Name of the other model, for the result.
        clusters: A key for each row. Rows with the same key, such as questions about one document, are not
            independent and are exchanged together.
        comparisons: Number of comparisons that will be adjusted together; it makes `detectable` larger.
        seed: Seed of the permutation test.

    Raises:
        ValueError: If the models have values for different rows, or of different metrics.
    """
    pairs = pair_rows(a, b, clusters)
    test = make_test(a, b, pairs, seed)
    p_value = test.p_value()
    # A difference cannot be larger than the scale; 0 stays inside, so the interval still agrees with p.
    width = a.highest - a.lowest
    wins, losses = _count_wins(a, b, pairs)
    return PairedDifference(
        metric=metric,
        role=role,
        other=other,
        n=pairs.n,
        excluded=pairs.excluded,
        difference=test.estimate,
        interval_95=cut(test.interval(ALPHA), -width, width),
        p_value=p_value,
        p_adjusted=p_value,
        method=test.method,
        wins=wins,
        losses=losses,
        ties=pairs.n - wins - losses,
        detectable=_find_detectable(a, b, pairs, ALPHA / comparisons),
        verdict=_decide(test.estimate, p_value, a.higher_is_better),
    )


def compare_models(
    models: Mapping[str, Mapping[str, MetricValues]],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[PairedDifference]:
    """Compare the first model with each other one on each metric that both have; adjust p by Holm's method.

    `models` has the values of metrics by the name of the model in the evaluation and the name of the metric.
    """
    (role, first), *others = models.items()
    cases = [(name, other, metric) for name, other in others for metric in first if metric in other]
    differences = [
        compare(
            first[metric],
            other[metric],
            metric=metric,
            role=role,
            other=name,
            clusters=clusters,
            comparisons=len(cases),
            seed=seed,
        )
        for name, other, metric in cases
    ]
    adjusted = adjust_holm([difference.p_value for difference in differences])
    return [
        difference.model_copy(
            update={
                "p_adjusted": p,
                "verdict": _decide(difference.difference, p, first[difference.metric].higher_is_better),
            }
        )
        for difference, p in zip(differences, adjusted, strict=True)
    ]


def paired_test(
    a: MetricValues, b: MetricValues, *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> PairedTest:
    """Return the test behind `compare`, for other levels and other hypotheses."""
    return make_test(a, b, pair_rows(a, b, clusters), seed)


@dataclass(frozen=True)
class _NoTest:
    """The test of no rows, which rejects nothing."""

    method: str = "no row has a value for both models"
    estimate: float = 0.0

    def p_value(self, null: float = 0.0) -> float:
        return 1.0

    def interval(self, alpha: float = ALPHA) -> Interval | None:
        return None


def make_test(a: MetricValues, b: MetricValues, pairs: Pairs, seed: int) -> PairedTest:
    """Return the test that fits the metric and the clusters."""
    if pairs.n == 0:
        return _NoTest()
    if a.corpus is not None and b.corpus is not None:
        return _make_corpus_test(a.corpus, b.corpus, pairs, seed)
    if _are_shares(a, b, pairs):
        return McNemarTest(int((pairs.a > pairs.b).sum()), int((pairs.a < pairs.b).sum()), pairs.n)
    differences = pairs.a - pairs.b
    test = mean_permutation_test(differences, pairs.cluster_of, seed=seed)
    return allow_for_unseen(test, differences != 0, np.concatenate([pairs.a, pairs.b]), pairs.cluster_of)


def _make_corpus_test(a: CorpusStatistics, b: CorpusStatistics, pairs: Pairs, seed: int) -> PairedTest:
    first, second = statistics_of(a, pairs.rows), statistics_of(b, pairs.rows)
    test = corpus_permutation_test(first, second, compute_many(a), pairs.cluster_of, seed=seed)
    contributions = [jackknife(one, pairs.rows, pairs.cluster_of)[0] for one in (a, b)]
    return allow_for_unseen(
        test, (first != second).any(axis=1), np.concatenate(contributions), pairs.cluster_of
    )


def _are_shares(a: MetricValues, b: MetricValues, pairs: Pairs) -> bool:
    """Return whether each row is an independent trial with the result 0 or 1."""
    values = np.concatenate([pairs.a, pairs.b])
    return a.is_share and b.is_share and not pairs.clustered and bool(np.isin(values, (0, 1)).all())


def _count_wins(a: MetricValues, b: MetricValues, pairs: Pairs) -> tuple[int, int]:
    above, below = int((pairs.a > pairs.b).sum()), int((pairs.a < pairs.b).sum())
    return (above, below) if a.higher_is_better else (below, above)


def _find_detectable(a: MetricValues, b: MetricValues, pairs: Pairs, alpha: float) -> float | None:
    if pairs.n == 0:
        return None
    if _are_shares(a, b, pairs):
        return detectable_share(pairs.n, float((pairs.a != pairs.b).mean()), alpha)
    spread = spread_of_difference(a, b, pairs)
    return detectable_mean(spread.standard_error, spread.n_clusters, alpha)


def _decide(difference: float, p_value: float, higher_is_better: bool) -> Verdict:
    if p_value > ALPHA or difference == 0:
        return "undecided"
    return "better" if (difference > 0) == higher_is_better else "worse"
