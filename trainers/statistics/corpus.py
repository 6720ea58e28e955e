"""Corpus metrics as arrays: their statistics by row, and the contribution of each row to their value."""

from collections.abc import Callable

import numpy as np

from trainers.metrics.metric import CorpusStatistics
from trainers.statistics.paired_tests.permutation import MAX_BLOCKS, sum_blocks
from trainers.statistics.pairs import FloatArray, IntArray


def statistics_of(corpus: CorpusStatistics, rows: IntArray) -> FloatArray:
    """Return the statistics of the rows at these positions, (rows, statistics)."""
    return np.array([corpus.rows[row] for row in rows], dtype=np.float64)


def compute_many(corpus: CorpusStatistics) -> Callable[[FloatArray], FloatArray]:
    """Return the function that computes the metric for each line of an array of sums."""
    return lambda sums: np.array([corpus.compute(line) for line in sums.tolist()], dtype=np.float64)


def jackknife(
    corpus: CorpusStatistics, rows: IntArray, cluster_of: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return the contribution of each cluster to the metric, and its number of rows.

    The contributions, weighted by the numbers of rows, have the metric as their mean, and their spread is
    that of the metric: they are what the values of rows are for a mean. Many clusters are merged into blocks.

    Source: the pseudo-values of Tukey, 1958, centred on the metric itself; Efron and Tibshirani, 1993, An
    Introduction to the Bootstrap, chapter 11.
    """
    blocks = cluster_of % MAX_BLOCKS
    statistics, compute = statistics_of(corpus, rows), compute_many(corpus)
    counts = np.bincount(blocks).astype(np.float64)
    total = statistics.sum(axis=0)
    value = float(compute(total[None])[0])
    if len(counts) == 1:
        return np.array([value]), counts
    without = compute(total - sum_blocks(statistics, blocks))
    influence = (len(rows) - counts) * (value - without) / counts
    return value + influence - np.average(influence, weights=counts), counts
