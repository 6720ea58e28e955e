"""Confidence intervals of a share that is measured on a sample."""

import math

Z_95 = 1.959963984540054  # The standard normal quantile of 0.975.


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a share (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Unlike the normal approximation it stays within 0 and 1, and has a width above 0 for shares of 0 and 1.
    """
    assert 0 <= correct <= n
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
