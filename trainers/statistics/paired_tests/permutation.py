"""Paired permutation tests of means and of corpus metrics, and the intervals that agree with them.

If two models are equal, each row's outputs could as well be exchanged between them. The test exchanges the
outputs of random rows (all rows of a cluster at once) and counts how often the difference of the models
becomes as large as the observed one. Up to 14 clusters it uses every exchange, and is exact.

Sources: Fisher, 1935, The Design of Experiments, section 21; for corpus metrics: Riezler and Maxwell, 2005,
aclanthology.org/W05-0908 ("approximate randomization"); counting the observed difference among the exchanged
ones, so that p is never 0: Phipson and Smyth, 2010, doi:10.2202/1544-6115.1585; the interval: Hartigan, 1969,
doi:10.1080/01621459.1969.10501057 ("typical values").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainers.statistics.paired_tests.paired_test import Interval
from trainers.statistics.pairs import FloatArray, IntArray

RESAMPLES = 9_999
"""Random exchanges. With the observed one among them, p is a multiple of 1/10,000."""
MAX_BLOCKS = 2_048
"""More clusters are merged into so many blocks, which are exchanged as a whole: this bounds time and memory.

The test stays exact; its power is that of as many clusters, which at this number is no loss that matters.
"""
_ROWS_PER_PRODUCT = 1_024


@dataclass(frozen=True)
class PermutationTest:
    """The differences that each exchange of rows does not reject.

    An exchange s turns the observed difference D into D(s). A true difference x is a constant that the first
    model is ahead on each row; without it, the exchange gives D(s) - x (1 - 2f), with f the exchanged share
    of the rows. That is at least as large as D - x, both in absolute value, exactly if x is between
    (D - D(s)) / 2f and (D + D(s)) / (2 - 2f): for a mean, the means over the exchanged and over the other
    rows. The p-value of x is the share of exchanges whose bounds contain x. All contain D, so p decreases
    away from D, and the interval of all x with p above alpha ends at an order statistic of the bounds.
    """

    estimate: float
    lower: FloatArray
    """Lower bounds of the exchanges without the identity, ascending."""
    upper: FloatArray
    method: str

    def p_value(self, null: float = 0.0) -> float:
        """Return the two-sided p-value of a true difference `null`."""
        below = int(np.searchsorted(self.lower, null, side="right"))
        above = len(self.upper) - int(np.searchsorted(self.upper, null, side="left"))
        return (1 + min(below, above)) / self._total

    def interval(self, alpha: float = 0.05) -> Interval | None:
        """Return the differences with a p-value above `alpha`, or None if no p-value can be so small."""
        assert 0 < alpha < 1
        rejected = math.floor(alpha * self._total)
        # The product is rounded: decide by the comparison that a caller makes with a p-value.
        rejected += (rejected + 1) / self._total <= alpha
        rejected -= rejected / self._total > alpha
        if rejected == 0:
            return None
        lower, upper = float(self.lower[rejected - 1]), float(self.upper[-rejected])
        return (lower, upper) if math.isfinite(lower) and math.isfinite(upper) else None

    @property
    def _total(self) -> int:
        return len(self.lower) + 1


def mean_permutation_test(
    differences: FloatArray, cluster_of: IntArray, *, seed: int = 0, resamples: int = RESAMPLES
) -> PermutationTest:
    """Test the mean of the differences of rows, (rows,), by exchanging the sign of whole clusters."""
    n = len(differences)
    # Whole multiples of a unit, whose sums are exact: the result has the same digits on every machine.
    unit = float(np.abs(differences).max()) * 2.0 ** (n.bit_length() - 52)
    grid = np.rint(differences / unit) if unit > 0 else np.zeros(n)
    blocks = _blocks(cluster_of)
    flips = draw_exchanges(blocks.max() + 1, resamples, seed)
    sums = flips.multiply(np.stack([np.bincount(blocks, grid), np.bincount(blocks)], axis=1))
    total = float(grid.sum())
    return _invert(
        total / n,
        (total - 2 * sums[:, 0]) / n,
        sums[:, 1] / n,
        estimate=math.fsum(differences) / n,
        # Twice the rounding error of a mean, so that equal sums count as equal.
        tolerance=4.0,
        unit=unit,
        method=f"paired permutation test of the mean ({flips.description}); inverted test",
    )


def corpus_permutation_test(
    a: FloatArray,
    b: FloatArray,
    compute: Callable[[FloatArray], FloatArray],
    cluster_of: IntArray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PermutationTest:
    """Test the difference of a corpus metric by exchanging the statistics of rows, (rows, statistics).

    `compute` returns the metric for each line of an array of sums, (samples, statistics).
    """
    blocks = _blocks(cluster_of)
    flips = draw_exchanges(blocks.max() + 1, resamples, seed)
    exchanged = flips.multiply(sum_blocks(np.column_stack([b - a, np.ones(len(a))]), blocks))
    shares, exchanged = exchanged[:, -1] / len(a), exchanged[:, :-1]
    total_a, total_b = a.sum(axis=0), b.sum(axis=0)
    estimate = float((compute(total_a[None]) - compute(total_b[None]))[0])
    statistics = compute(total_a + exchanged) - compute(total_b - exchanged)
    return _invert(
        estimate,
        statistics,
        shares,
        estimate=estimate,
        tolerance=1e-9 * max(abs(estimate), float(np.abs(statistics).max(initial=0.0))),
        unit=1.0,
        method=f"approximate randomization of the corpus metric ({flips.description}); inverted test",
    )


def sum_blocks(values: FloatArray, blocks: IntArray) -> FloatArray:
    """Return the sums over the rows of each block: (rows, columns) to (blocks, columns)."""
    return np.stack([np.bincount(blocks, column) for column in values.T], axis=1)


@dataclass(frozen=True)
class Exchanges:
    """Sets of blocks whose rows are exchanged, without the empty set: 1 for an exchanged block."""

    sets: npt.NDArray[np.uint8]
    """Shape (exchanges, blocks)."""
    description: str

    def multiply(self, sums: FloatArray) -> FloatArray:
        """Return the sums over the exchanged blocks: (blocks, columns) to (exchanges, columns)."""
        parts = range(0, len(self.sets), _ROWS_PER_PRODUCT)
        products = [self.sets[part : part + _ROWS_PER_PRODUCT].astype(np.float64) @ sums for part in parts]
        return np.concatenate(products) if products else np.empty((0, sums.shape[1]))


@lru_cache(maxsize=2)
def draw_exchanges(n_blocks: int, resamples: int, seed: int) -> Exchanges:
    """Return all exchanges if there are at most `resamples`, otherwise so many random ones.

    An exchange and its complement are the same one, so that all of them are those that keep the last block.
    """
    every = 2 ** (n_blocks - 1) if n_blocks < 60 else math.inf
    if every <= resamples + 1:
        numbers = np.arange(1, every, dtype=np.int64)
        sets = ((numbers[:, None] >> np.arange(n_blocks)) & 1).astype(np.uint8)
        return Exchanges(sets, f"all {2 * every} exchanges")
    bits = resamples * n_blocks
    # The raw output of a bit generator is the same in all versions of numpy and on all machines.
    raw = np.random.PCG64(seed).random_raw(-(-bits // 64)).astype("<u8").view(np.uint8)
    return Exchanges(
        np.unpackbits(raw, count=bits).reshape(resamples, n_blocks), f"{resamples:,} random exchanges"
    )


def _blocks(cluster_of: IntArray) -> IntArray:
    return cluster_of % MAX_BLOCKS


def _invert(
    observed: float,
    statistics: FloatArray,
    shares: FloatArray,
    *,
    estimate: float,
    tolerance: float,
    unit: float,
    method: str,
) -> PermutationTest:
    """Return the test whose exchanges have these statistics and exchanged shares of the rows, in units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (observed - statistics) / (2 * shares)
        second = (observed + statistics) / (2 - 2 * shares)
    # An exchange of nothing or of everything rejects no difference.
    whole = (shares == 0) | (shares == 1)
    lower = np.where(whole, -np.inf, np.minimum(first, second) - tolerance)
    upper = np.where(whole, np.inf, np.maximum(first, second) + tolerance)
    if unit != 1:
        lower, upper = (np.where(whole, bounds, bounds * unit) for bounds in (lower, upper))
    return PermutationTest(estimate, np.sort(lower), np.sort(upper), method)
