"""Limits of the rate of an event, such as a failed request, that hold however often somebody looks.

A 95 % interval for a fixed number of requests misses the true rate sooner or later if it is computed again
after every request. These limits are valid at all looks together: the probability that the true rate is ever
below the lower one is at most `alpha / 2`, and likewise for the upper one.

A rate r is excluded from below by the evidence for higher rates: the likelihood ratio of each rate c r
against r, on average over `HIGHER`. If the true rate is at most r, this evidence grows on average at no
request, so that it ever reaches 2 / alpha with a probability of at most alpha / 2 (Ville, 1939). The upper
limit follows in the same way from `LOWER`.

Sources: Ville, 1939, Étude critique de la notion de collectif; Robbins, 1970, doi:10.1214/aoms/1177696786
(mixtures of likelihood ratios). Requests are taken as independent: failures of one cause, such as a restart
of the engine, are fewer facts than their number.
"""

import math
from collections.abc import Callable, Sequence

HIGHER = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LOWER = (0.0, 0.1, 0.25, 0.5, 0.75)
ALPHA = 0.05
_BISECTIONS = 40


def rate_limits(events: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the lower and the upper limit of a rate after `events` in `n` requests; (0, 1) without any."""
    assert 0 <= events <= n
    if n == 0:
        return 0.0, 1.0
    needed = math.log(2 / alpha)
    lower = _bisect(lambda rate: _log_evidence(events, n, rate, HIGHER) < needed) if events else 0.0
    upper = _bisect(lambda rate: _log_evidence(events, n, rate, LOWER) >= needed) if events < n else 1.0
    return lower, upper


def requests_needed(max_rate: float, alpha: float = ALPHA) -> int:
    """Return the number of requests without any event after which the upper limit is at most `max_rate`."""
    needed = math.log(2 / alpha)
    low, high = 0, 1
    while _log_evidence(0, high, max_rate, LOWER) < needed:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _log_evidence(0, middle, max_rate, LOWER) < needed else (low, middle)
    return high


def _log_evidence(events: int, n: int, rate: float, multiples: Sequence[float]) -> float:
    """Return the logarithm of the mean likelihood ratio of multiples of a rate between 0 and 1 against it."""
    logs = [
        _log_likelihood(events, n, multiple * rate) - _log_likelihood(events, n, rate)
        for multiple in multiples
        if multiple * rate <= 1
    ]
    highest = max(logs, default=-math.inf)
    if highest == -math.inf:
        return -math.inf
    # Multiples above a rate of 1 count as zero, which keeps the evidence monotone in the rate.
    return highest + math.log(sum(math.exp(log - highest) for log in logs) / len(multiples))


def _log_likelihood(events: int, n: int, rate: float) -> float:
    with_event = events * math.log(rate) if rate > 0 else (-math.inf if events else 0.0)
    without_event = (n - events) * math.log1p(-rate) if rate < 1 else (-math.inf if events < n else 0.0)
    return with_event + without_event


def _bisect(is_above: Callable[[float], bool]) -> float:
    """Return the rate from which a condition on rates between 0 and 1 holds."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2
