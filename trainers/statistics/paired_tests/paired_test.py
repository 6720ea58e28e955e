"""What a test of a paired difference offers, whichever the metric."""

from typing import Protocol

Interval = tuple[float, float]

SMALLEST_P = 1e-300
"""A p-value is never 0, however strong the evidence."""


def cut(interval: Interval | None, lowest: float, highest: float) -> Interval | None:
    """Return the part of an interval that is between two values, both of which it may contain."""
    if interval is None:
        return None
    lower, upper = (min(max(end, lowest), highest) for end in interval)
    return lower, upper


class PairedTest(Protocol):
    """A two-sided test of each possible difference, and the interval of those that it does not reject.

    `p_value(x) <= alpha` holds exactly if `interval(alpha)` excludes x.
    """

    @property
    def method(self) -> str:
        """Name of the test and of the interval."""
        ...

    @property
    def estimate(self) -> float:
        """The observed difference."""
        ...

    def p_value(self, null: float = 0.0) -> float:
        """Return the probability of a difference at least as far from `null`, if `null` is the true one."""
        ...

    def interval(self, alpha: float = 0.05) -> Interval | None:
        """Return the interval at confidence `1 - alpha`, or None if the rows are too few."""
        ...


def p_value_above(test: PairedTest, null: float) -> float:
    """Return the one-sided p-value of the alternative that the true difference is above `null`."""
    half = test.p_value(null) / 2
    return half if test.estimate > null else 1 - half


def p_value_below(test: PairedTest, null: float) -> float:
    """Return the one-sided p-value of the alternative that the true difference is below `null`."""
    half = test.p_value(null) / 2
    return half if test.estimate < null else 1 - half
