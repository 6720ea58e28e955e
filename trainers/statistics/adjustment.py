"""Correction of p-values for the number of comparisons."""

from collections.abc import Sequence


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that together call an equal pair different with at most the stated probability.

    The p-values may depend on each other in any way.

    Source: Holm, 1979, Scandinavian Journal of Statistics 6(2).
    """
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
