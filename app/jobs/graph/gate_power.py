"""Warnings about gates that chance would decide or that are always met."""

import math
from statistics import NormalDist

from app.jobs.graph.gated_evaluation import GatedEvaluation
from trainers.configs import GateBasis, GateConfig

POWER = 0.8
# Share of the rows on which only one of two models is right, assumed before an evaluation.
ASSUMED_DISCORDANT = 0.2
# Differences that people want to find; in points of a percentage.
WANTED_DIFFERENCE = 0.05
ONE_SIDED = {GateBasis.bound: 0.975, GateBasis.test: 0.95, GateBasis.sequential: 0.95}
# So many times the rows, at worst, does a test that may be looked at after each row need to find as much with
# 80 % (2.0 to 2.2, simulated for discordant shares of .1 to .3 and differences of 3 to 10 points).
SEQUENTIAL_ROWS = 2.1


def list_gate_warnings(gate: GateConfig, evaluation: GatedEvaluation) -> list[str]:
    """Return what makes a gate weak: too few rows for its margin, or a limit that every model reaches."""
    scale, against = evaluation.scale, gate.against
    if isinstance(against, float | int):
        limit = scale.loosen(float(against), gate.margin)
        worst = scale.low if scale.higher_is_better else scale.high
        if worst is not None and scale.is_good(worst, limit):
            return [f"The gate is always met: the worst value of {evaluation.metric} is {worst:g}."]
        variance = max(0.0, limit * (1 - limit))
    else:
        variance = ASSUMED_DISCORDANT
    rows = evaluation.rows
    if gate.on is GateBasis.value or not scale.is_share or not rows:
        return []
    # The normal approximation, by the standard library: scipy is not installed here.
    counted = rows / SEQUENTIAL_ROWS if gate.on is GateBasis.sequential else rows
    error, quantile = math.sqrt(variance / counted), NormalDist().inv_cdf(ONE_SIDED[gate.on])
    detectable = (quantile + NormalDist().inv_cdf(POWER)) * error
    points = f"{100 * detectable:.1f} percentage points"
    found = f"With {rows:,} rows, a true difference of {points} would be found with 80 %"
    if not gate.margin:
        return [f"{found}; smaller ones are often missed."] if detectable > WANTED_DIFFERENCE else []
    power = NormalDist().cdf(abs(gate.margin) / error - quantile) if error else 1.0
    if power >= POWER:
        return []
    return [
        f"The gate has little power: a difference of {100 * abs(gate.margin):.1f} percentage points, its "
        f"margin, would be found with {100 * power:.0f} %. {found}. Use more rows or a larger margin."
    ]
