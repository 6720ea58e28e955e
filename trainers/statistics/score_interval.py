"""The interval of one model's score."""

from collections.abc import Hashable, Sequence

import numpy as np

from trainers.metrics.metric import MetricValues
from trainers.statistics.paired_tests.paired_test import Interval, cut
from trainers.statistics.pairs import number_clusters, usable
from trainers.statistics.spread import spread_of_values
from trainers.statistics.wilson import wilson_interval


def score_interval(
    values: MetricValues, *, clusters: Sequence[Hashable] | None = None, alpha: float = 0.05
) -> Interval | None:
    """Return the interval of a metric at confidence `1 - alpha`, or None if fewer than two rows have a value.

    A share gets Wilson's interval, which in clusters counts as many rows as would have its standard error
    (Korn and Graubard, 1998, Survey Methodology 24(2)); any other metric gets Student's, whose standard error
    for a corpus metric is the jackknife's. Rows without a finite value do not count. Values without any
    spread get an interval of width 0: nothing measured says how far another row could be away.
    The ends are values that the metric can have: Student's interval of few rows is cut there, which excludes
    no possible value.
    """
    rows = np.array([row for row, value in enumerate(values.row_values) if usable(value)], dtype=np.int64)
    if len(rows) == 0:
        return None
    cluster_of = number_clusters(clusters, len(values.row_values), rows.tolist())
    spread = spread_of_values(values, rows, cluster_of)
    if not values.is_share:
        return cut(spread.interval(alpha), values.lowest, values.highest)
    n, share = float(len(rows)), min(1.0, max(0.0, spread.mean))
    if spread.n_clusters < n:
        variance = spread.standard_error**2
        # All right or all wrong has no spread; then rows of a cluster may all have one cause.
        independent = share * (1 - share) / variance if variance > 0 else spread.n_clusters
        n = min(n, max(1.0, independent)) if spread.n_clusters > 1 else 1.0
    return wilson_interval(share * n, n, alpha)
