"""McNemar's mid-p test of paired 0/1 scores, and the interval that agrees with it.

Rows on which both models are right, or both wrong, have no information about which model is better. Among the
m rows on which they differ, equal models win each with probability 1/2: the test is a binomial one. Its mid-p
counts half the probability of the observed count; it has more power than the exact test, whose p-values are
too large.

Sources: McNemar, 1947, doi:10.1007/BF02295996; mid-p: Fagerland, Lydersen and Laake, 2013,
doi:10.1186/1471-2288-13-91; score statistic: Tango, 1998, Statistics in Medicine 17(8), 891-908.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import bdtr, ndtr, ndtri

from trainers.statistics.paired_tests.paired_test import SMALLEST_P, Interval
from trainers.statistics.pairs import FloatArray

_EDGE = 1e-12
"""Least distance from 0 of the bound of an interval that excludes or includes 0."""


def mid_p(wins: int, losses: int) -> float:
    """Return the two-sided mid-p value of McNemar's test; 1 without a row on which the models differ."""
    m, least = wins + losses, min(wins, losses)
    if wins == losses:
        return 1.0
    return max(SMALLEST_P, float(bdtr(least - 1, m, 0.5) if least else 0.0) + float(bdtr(least, m, 0.5)))


@dataclass(frozen=True)
class McNemarTest:
    """The mid-p test of two shares on the same rows, extended to differences other than 0.

    For a difference d the statistic is Tango's score statistic z(d), which for d = 0 is McNemar's (wins -
    losses) / sqrt(m). It is not referred to the normal distribution but to that of the mid-p test with the
    same m: the p-value of z is the mid-p of wins - losses = z sqrt(m), interpolated on the scale of normal
    quantiles between the counts that can occur. So the p-value at 0 is the mid-p, and the interval, which
    consists of the differences with a p-value above alpha, agrees with the test. It approaches Tango's as m
    grows.
    """

    wins: int
    losses: int
    n: int
    method: str = "McNemar's mid-p test; Tango's score interval with its critical value"

    @property
    def estimate(self) -> float:
        """Return the difference of the shares."""
        return (self.wins - self.losses) / self.n

    def p_value(self, null: float = 0.0) -> float:
        """Return the two-sided p-value of a true difference `null`, between -1 and 1."""
        if abs(null) < _EDGE:
            return mid_p(self.wins, self.losses)
        if abs(null) >= 1:
            return 1.0 if self.estimate == null else SMALLEST_P
        return max(SMALLEST_P, 2 * float(ndtr(-self._quantile(abs(self._score(null))))))

    def interval(self, alpha: float = 0.05) -> Interval:
        """Return the differences with a p-value above `alpha`."""
        critical = self._critical_score(float(-ndtri(alpha / 2)))
        excludes_0 = self.p_value() <= alpha
        lowest = _EDGE if excludes_0 and self.estimate > 0 else -1.0
        highest = -_EDGE if excludes_0 and self.estimate < 0 else 1.0
        lower = _bisect(lambda d: self._score(d) - critical, lowest, self.estimate)
        upper = _bisect(lambda d: self._score(d) + critical, self.estimate, highest)
        return (lower, upper) if excludes_0 else (min(lower, -_EDGE), max(upper, _EDGE))

    @property
    def _m(self) -> int:
        return self.wins + self.losses

    def _score(self, d: float) -> float:
        """Return Tango's statistic of the true difference `d`; it decreases in `d`."""
        b, c, n = self.wins, self.losses, self.n
        linear = -b - c + (2 * n - b + c) * d
        # The most likely probability of a loss, given the true difference.
        loss = (math.sqrt(max(0.0, linear**2 + 8 * n * c * d * (1 - d))) - linear) / (4 * n)
        variance = n * (2 * loss + d * (1 - d))
        distance = b - c - n * d
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    @cached_property
    def _knots(self) -> tuple[FloatArray, FloatArray]:
        """Return the possible values of `wins - losses`, from 0, and the normal quantiles of their mid-p."""
        counts: FloatArray = np.arange(self._m % 2, self._m + 1, 2, dtype=np.float64)
        least = (self._m - counts) / 2
        p = np.where(least > 0, bdtr(np.maximum(least - 1, 0), self._m, 0.5), 0) + bdtr(least, self._m, 0.5)
        quantiles = np.where(counts == 0, 0.0, -ndtri(np.maximum(p, SMALLEST_P) / 2))
        if counts[0] == 0:
            return counts, quantiles
        return np.append(0.0, counts), np.append(0.0, quantiles)

    def _quantile(self, score: float) -> float:
        """Return the normal quantile that corresponds to a score; beyond the largest with the slope 1."""
        if self._m == 0:
            return score
        counts, quantiles = self._knots
        root = math.sqrt(self._m)
        count = score * root
        beyond = max(0.0, count - self._m) / root
        return float(np.interp(count, counts, quantiles)) + beyond

    def _critical_score(self, quantile: float) -> float:
        """Return the score that corresponds to a normal quantile: the inverse of `_quantile`."""
        if self._m == 0:
            return quantile
        counts, quantiles = self._knots
        root = math.sqrt(self._m)
        beyond = max(0.0, quantile - float(quantiles[-1])) * root
        return (float(np.interp(quantile, quantiles, counts)) + beyond) / root


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a decreasing function becomes 0, or the bound at which it has not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
