"""The test of models that differ on a few rows only, whose interval allows for differences not seen yet."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from trainers.statistics.paired_tests.paired_test import SMALLEST_P, Interval, PairedTest
from trainers.statistics.pairs import BoolArray, FloatArray, IntArray

FEWEST_DIFFERENCES = 6
"""With fewer rows that differ, no exchange of rows is rejected at 5 %: the smallest p-value is 2 / 2^5."""


def allow_for_unseen(
    test: PairedTest, differs: BoolArray, values: FloatArray, cluster_of: IntArray
) -> PairedTest:
    """Return the test with a wider interval if the models differ on few rows.

    Args:
        test: The permutation test.
        differs: Whether the models differ on each row.
        values: Values of rows, of both models in any order.
        cluster_of: Number of each row's cluster.
    """
    if len(np.unique(cluster_of[differs])) >= FEWEST_DIFFERENCES:
        return test
    return SparseTest(test, float(values.max() - values.min()), int(cluster_of.max()) + 1)


@dataclass(frozen=True)
class SparseTest:
    """A permutation test whose interval is wider at its outer ends.

    Rows without a difference say that differences are rare, not that there are none: an interval made of the
    few that were seen, or of none, would be too narrow. By the score interval of a share of which none was
    seen, at most z^2 / (n + z^2) of all rows differ otherwise, each by no more than the range of the values.
    An end between 0 and the estimate stays, so the interval excludes 0 exactly if the permutation test does.

    Source of the share: Wilson, 1927, doi:10.1080/01621459.1927.10502953, for no success in n trials.
    """

    permutation: PairedTest
    value_range: float
    """Difference of the largest and the smallest value of a row."""
    n_clusters: int

    @property
    def method(self) -> str:
        """Return the name of the test and of the interval."""
        return f"{self.permutation.method}, wider for unseen differences"

    @property
    def estimate(self) -> float:
        """Return the observed difference."""
        return self.permutation.estimate

    def p_value(self, null: float = 0.0) -> float:
        """Return the level at which `null` is at the end of the interval."""
        if null == 0:
            return self.permutation.p_value()
        low, high = 0.0, 1.0
        for _ in range(50):
            alpha = (low + high) / 2
            low, high = (low, alpha) if self._excludes(null, alpha) else (alpha, high)
        return max(SMALLEST_P, high)

    def interval(self, alpha: float = 0.05) -> Interval | None:
        """Return the interval at confidence `1 - alpha`."""
        inner = self.permutation.interval(alpha)
        if inner is None:
            return None
        lower, upper = inner
        squared = float(ndtri(alpha / 2)) ** 2
        unseen = self.value_range * squared / (self.n_clusters + squared)
        return lower - unseen if lower <= 0 else lower, upper + unseen if upper >= 0 else upper

    def _excludes(self, null: float, alpha: float) -> bool:
        interval = self.interval(alpha)
        return interval is not None and not interval[0] <= null <= interval[1]
