"""The rows on which two models are compared, and the clusters in which they are independent."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trainers.metrics.metric import MetricValues

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]

LARGEST = 1e100
"""Larger values are treated as infinite, so that no sum overflows."""


@dataclass(frozen=True)
class Pairs:
    """The rows for which both models have a finite value. All arrays have a value for each such row."""

    rows: IntArray
    """Positions of the rows in the values of the models, from 0."""
    a: FloatArray
    b: FloatArray
    cluster_of: IntArray
    """Number of the cluster that each row belongs to, from 0 without gaps."""
    excluded: int
    """Rows without a finite value for one of the models."""

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def n_clusters(self) -> int:
        """Return the number of clusters."""
        return 0 if self.n == 0 else int(self.cluster_of.max()) + 1

    @property
    def clustered(self) -> bool:
        """Return whether any cluster has several rows."""
        return self.n_clusters < self.n


def pair_rows(a: MetricValues, b: MetricValues, clusters: Sequence[Hashable] | None = None) -> Pairs:
    """Return the rows that both models have a finite value for.

    Raises:
        ValueError: If the models have values for different rows, or of different metrics.
    """
    if len(a.row_values) != len(b.row_values):
        raise ValueError(
            f"The models have values for {len(a.row_values)} and {len(b.row_values)} rows; a paired "
            "comparison needs the same rows in the same order"
        )
    if a.higher_is_better != b.higher_is_better:
        raise ValueError("The values are of different metrics: higher is better for only one of the models")
    rows = [row for row, (x, y) in enumerate(zip(a.row_values, b.row_values, strict=True)) if usable(x, y)]
    return Pairs(
        rows=np.array(rows, dtype=np.int64),
        a=np.array([a.row_values[row] for row in rows], dtype=np.float64),
        b=np.array([b.row_values[row] for row in rows], dtype=np.float64),
        cluster_of=number_clusters(clusters, len(a.row_values), rows),
        excluded=len(a.row_values) - len(rows),
    )


def usable(*values: float | None) -> bool:
    """Return whether all values are known and finite."""
    return all(value is not None and math.isfinite(value) and abs(value) < LARGEST for value in values)


def number_clusters(clusters: Sequence[Hashable] | None, n: int, rows: Sequence[int]) -> IntArray:
    """Return the number of each row's cluster, in order of appearance; without clusters each row is one.

    Raises:
        ValueError: If there is not one cluster for each of the `n` rows.
    """
    if clusters is None:
        return np.arange(len(rows), dtype=np.int64)
    if len(clusters) != n:
        raise ValueError(f"There are {len(clusters)} cluster keys for {n} rows; expected one for each row")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(clusters[row], len(numbers)) for row in rows], dtype=np.int64)
