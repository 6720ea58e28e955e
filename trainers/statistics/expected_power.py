"""Power before an evaluation, from the number of rows alone. Needs the standard library only, for the API."""

import math
from statistics import NormalDist

POWER = 0.8
"""The probability with which a detectable difference is found."""
ASSUMED_DISCORDANT = 0.2
"""Share of the rows on which only one of two models is right, assumed before an evaluation."""


def estimate_detectable_share(
    n: int, discordant: float = ASSUMED_DISCORDANT, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return about the smallest difference of two paired shares that is found with `power`; None if none is.

    The normal approximation of Connor, 1987, doi:10.2307/2531961: from 150 rows on within a tenth of the
    exact value, which `trainers.statistics.power` computes after an evaluation.
    """
    reject, find = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    # Fewer than five discordant rows are never significant, whatever they say.
    if n < 5:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        difference = (low + high) / 2
        share = max(discordant, difference)
        found = math.sqrt(n) * difference >= reject * math.sqrt(share) + find * math.sqrt(
            share - difference**2
        )
        low, high = (low, difference) if found else (difference, high)
    return high


def describe_expected_power(n: int) -> str:
    """Return the power of comparing two models on n rows, and what it assumes, as sentences."""
    detectable = estimate_detectable_share(n)
    rows = f"{n:,} row{'' if n == 1 else 's'}"
    if detectable is None:
        return f"{rows.capitalize()} cannot show a difference between two models; use at least 100."
    return (
        f"With {rows}, a true difference of about {100 * detectable:.0f} percentage points would be found "
        f"with a probability of {POWER:.0%}, for a metric that is 0 or 1 for each row and two models of "
        f"which only one is right on {ASSUMED_DISCORDANT:.0%} of the rows."
    )
