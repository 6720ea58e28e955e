"""Confidence interval of a share that is measured on a sample."""

import math
from statistics import NormalDist


def wilson_interval(correct: float, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return the score interval of a share at confidence `1 - alpha`.

    Unlike the normal approximation it stays within 0 and 1, and has a width above 0 for shares of 0 and 1.
    The counts need not be integers: rows in clusters count as fewer independent ones. Without rows it is (0,
    1).

    Source: Wilson, 1927, doi:10.1080/01621459.1927.10502953.
    """
    assert 0 <= correct <= n
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - alpha / 2)
    share, z2 = correct / n, z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The bound of a share of 0 or 1 is the share; rounding would put it next to it.
    return centre - half if correct > 0 else 0.0, centre + half if correct < n else 1.0
