"""A test that may be looked at after every row, for gates that watch an evaluation grow.

A test with a fixed number of rows finds a difference between equal models sooner or later if it is repeated
while the rows arrive. Here the evidence is the capital of a player who bets on each row that the first model
is better. If it is not, the capital grows on average at no time, and the probability that it ever reaches 20
times the start is at most 5 % (Ville, 1939), whenever and however often somebody looks.

Sources: Waudby-Smith and Ramdas, 2024, doi:10.1093/jrsssb/qkad009 (betting on bounded values); Robbins, 1970,
doi:10.1214/aoms/1177696786 (the mixture over stakes).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainers.statistics.pairs import FloatArray

STAKES: FloatArray = np.geomspace(0.005, 0.95, 32)
"""Shares of the capital that are bet, in equal parts: small ones suit small differences."""
ALPHA = 0.05
# Its exponential is still finite.
MAX_LOG = 700.0

GrowthOutcome = Literal["met", "worse", "out_of_reach"]
"""The model is within the margin; it is not; or the rows that are left cannot show that it is."""


def grow_evidence(differences: FloatArray, *, bound: float = 1.0, margin: float = 0.0) -> FloatArray:
    """Return the evidence after each row that the first model is worse by less than `margin`: (..., rows).

    Args:
        differences: Value of the first model minus that of the second, in the order in which the rows were
            evaluated, (..., rows); with the sign changed where lower values are better. The order must not
            depend on the responses. Rows in clusters enter as the mean of their cluster.
        bound: Largest possible difference of a row: 1 for shares.
        margin: 0 asks whether the model is better, as in `check_margin`.

    Raises:
        ValueError: If a difference exceeds the bound, or every model is within the margin.
    """
    if margin >= bound:
        raise ValueError(
            f"A margin of {margin:g} excludes no difference of at most {bound:g}; use a smaller one"
        )
    if differences.size and float(np.abs(differences).max()) > bound:
        raise ValueError(
            f"A row's difference is {float(np.abs(differences).max()):g}, above the stated bound of {bound:g}"
        )
    bets = (differences + margin) / (bound - margin)
    log_capital = np.full(differences.shape, -np.inf)
    for stake in STAKES:
        log_capital = np.logaddexp(log_capital, np.cumsum(np.log1p(stake * bets), axis=-1))
    return np.exp(np.minimum(log_capital - np.log(len(STAKES)), MAX_LOG))


def find_passing_row(
    differences: FloatArray, *, bound: float = 1.0, margin: float = 0.0, alpha: float = ALPHA
) -> int | None:
    """Return after how many rows the test was first met, from where a gate may pass, or None."""
    reached = grow_evidence(differences, bound=bound, margin=margin) >= 1 / alpha
    return int(np.argmax(reached)) + 1 if reached.any() else None


@dataclass(frozen=True)
class GrowthDecision:
    """What a look at an evaluation that grows has found."""

    outcome: GrowthOutcome | None
    """None as long as more rows may decide."""
    evidence: float
    """The largest evidence so far that the model is worse by less than the margin."""
    counter_evidence: float
    """The largest evidence so far that it is worse by more."""


def decide_growth(
    differences: FloatArray, n_left: int, *, bound: float = 1.0, margin: float = 0.0, alpha: float = ALPHA
) -> GrowthDecision:
    """Return whether the rows so far decide, of an evaluation that has at most `n_left` more.

    Both tests are valid at any look, each with an error of at most `alpha`. The third outcome follows by
    arithmetic: not even `n_left` rows of the best possible difference would lead to enough evidence.
    Arguments and errors as those of `grow_evidence`; differences (rows).
    """
    evidence = _largest(grow_evidence(differences, bound=bound, margin=margin))
    counter_evidence = _largest(grow_evidence(-differences, bound=bound, margin=-margin))
    outcome: GrowthOutcome | None = None
    if evidence >= 1 / alpha:
        outcome = "met"
    elif counter_evidence >= 1 / alpha:
        outcome = "worse"
    elif n_left and _largest_reachable(differences, n_left, bound, margin) < 1 / alpha:
        outcome = "out_of_reach"
    return GrowthDecision(outcome, evidence, counter_evidence)


def _largest(evidence: FloatArray) -> float:
    return float(evidence.max(initial=1.0))


def _largest_reachable(differences: FloatArray, n_left: int, bound: float, margin: float) -> float:
    """Return the evidence after `n_left` further rows of the largest difference."""
    bets, best = (differences + margin) / (bound - margin), (bound + margin) / (bound - margin)
    log_capitals = np.array(
        [np.log1p(stake * bets).sum() + n_left * np.log1p(stake * best) for stake in STAKES]
    )
    total = np.logaddexp.reduce(log_capitals) - np.log(len(STAKES))
    return float(np.exp(min(total, MAX_LOG)))
