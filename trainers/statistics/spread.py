"""Standard error of a metric, with regard to clusters."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from trainers.metrics.metric import MetricValues
from trainers.statistics.corpus import jackknife
from trainers.statistics.paired_tests.paired_test import Interval
from trainers.statistics.pairs import FloatArray, IntArray, Pairs


@dataclass(frozen=True)
class Spread:
    """A mean, its standard error, and the number of independent clusters behind it."""

    mean: float
    standard_error: float
    n_clusters: int

    def interval(self, alpha: float = 0.05) -> Interval | None:
        """Return Student's interval of the mean; None for a single cluster."""
        if self.n_clusters < 2:
            return None
        half = float(stdtrit(self.n_clusters - 1, 1 - alpha / 2)) * self.standard_error
        return self.mean - half, self.mean + half


def spread_of(contributions: FloatArray, counts: FloatArray) -> Spread:
    """Return the spread of a mean from the means of clusters and their numbers of rows.

    Source: the cluster-robust standard error; for evaluations: Miller, 2024, arXiv:2411.00640, section 2.2.
    """
    clusters, n = len(counts), float(counts.sum())
    mean = float(np.average(contributions, weights=counts))
    if clusters < 2:
        return Spread(mean, math.inf, clusters)
    squares = float(((counts * (contributions - mean)) ** 2).sum())
    return Spread(mean, math.sqrt(squares * clusters / (clusters - 1)) / n, clusters)


def spread_of_values(values: MetricValues, rows: IntArray, cluster_of: IntArray) -> Spread:
    """Return the spread of one model's metric over these rows."""
    if values.corpus is not None:
        return spread_of(*jackknife(values.corpus, rows, cluster_of))
    return spread_of(*_cluster_means(np.array([values.row_values[row] for row in rows]), cluster_of))


def spread_of_difference(a: MetricValues, b: MetricValues, pairs: Pairs) -> Spread:
    """Return the spread of the paired difference of two models."""
    if a.corpus is None or b.corpus is None:
        return spread_of(*_cluster_means(pairs.a - pairs.b, pairs.cluster_of))
    first, counts = jackknife(a.corpus, pairs.rows, pairs.cluster_of)
    second, _ = jackknife(b.corpus, pairs.rows, pairs.cluster_of)
    return spread_of(first - second, counts)


def _cluster_means(values: FloatArray, cluster_of: IntArray) -> tuple[FloatArray, FloatArray]:
    counts = np.bincount(cluster_of).astype(np.float64)
    return np.bincount(cluster_of, values) / counts, counts
