"""Power: how small a true difference a number of rows would find.

A comparison finds a difference if its two-sided test has p at most alpha. Before an evaluation the spread is
an assumption, afterwards it is the observed one.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import bdtr, gammaln, ndtri, stdtrit, xlog1py, xlogy

from trainers.statistics.expected_power import ASSUMED_DISCORDANT, POWER
from trainers.statistics.pairs import FloatArray


def share_power(n: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """Return the probability that McNemar's mid-p test finds a true difference of two paired shares.

    Args:
        n: Rows.
        discordant: Share of the rows on which only one model is right; at least the difference.
        difference: True difference of the shares, above 0.
        alpha: Level of the test.

    The sum over all numbers of discordant rows is exact: it uses the test itself, not the normal
    approximation of Connor, 1987, doi:10.2307/2531961.
    """
    discordant = min(1.0, max(discordant, difference))
    spread = 7 * math.sqrt(n * discordant * (1 - discordant)) + 7
    m = np.arange(max(0, int(n * discordant - spread)), min(n, int(n * discordant + spread)) + 1)
    weights = np.exp(_log_binomial(m, n, discordant))
    most_losses = _most_losses(m, alpha)
    loss = (1 - difference / discordant) / 2
    found = np.where(most_losses >= 0, bdtr(np.maximum(most_losses, 0), m, loss), 0.0)
    return float(weights @ found)


def detectable_share(
    n: int, discordant: float = ASSUMED_DISCORDANT, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return the smallest difference of two paired shares that is found with `power`; None if none is."""
    return _find(lambda difference: share_power(n, discordant, difference, alpha), power)


def detectable_mean(
    standard_error: float, n_clusters: int, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return the smallest difference of two means that is found with `power`; None if none is known.

    Before an evaluation, `standard_error` is the standard deviation of the differences of rows, divided by
    the root of their number. Student's quantiles stand for those of the permutation test.

    Source: Miller, 2024, arXiv:2411.00640, section 5.
    """
    # The smallest p-value of the permutation test is 2 / 2^n.
    if n_clusters < 2 or 2.0 ** (1 - n_clusters) > alpha or not 0 < standard_error < math.inf:
        return None
    freedom = n_clusters - 1
    return float(stdtrit(freedom, 1 - alpha / 2) + stdtrit(freedom, power)) * standard_error


def describe_power(n: int, detectable: float | None, *, is_share: bool) -> str:
    """Return the power as a sentence for people; a share's difference is in percentage points."""
    rows = f"{n:,} row{'' if n == 1 else 's'}"
    if detectable is None:
        return f"With {rows}, it is unknown how large a difference must be to be found."
    size = f"{100 * detectable:.1f} percentage points" if is_share else f"{detectable:.3g}"
    return f"With {rows}, a true difference of {size} would be found with a probability of {POWER:.0%}."


def _most_losses(m: FloatArray, alpha: float) -> FloatArray:
    """Return the largest number of losses among m rows with a mid-p of at most alpha; -1 for none."""
    losses = np.floor(m / 2 + ndtri(alpha / 2) * np.sqrt(m) / 2) + 2
    losses = np.minimum(losses, np.floor((m - 1) / 2))
    while (above := (losses >= 0) & (_mid_p(losses, m) > alpha)).any():
        losses = losses - above
    return losses


def _mid_p(losses: FloatArray, m: FloatArray) -> FloatArray:
    below = np.where(losses > 0, bdtr(np.maximum(losses - 1, 0), m, 0.5), 0.0)
    return below + bdtr(np.maximum(losses, 0), m, 0.5)


def _log_binomial(k: FloatArray, n: int, p: float) -> FloatArray:
    chosen = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return chosen + xlogy(k, p) + xlog1py(n - k, -p)


def _find(function: Callable[[float], float], target: float) -> float | None:
    """Return where an increasing function of (0, 1] reaches the target."""
    low, high = 0.0, 1.0
    if function(high) < target:
        return None
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < target else (low, middle)
    return high
