"""Goal: a diverging run is noticed, and a healthy one is not. Method: curves, and simulated noise of rows."""

import math
import random
from collections.abc import Callable

import pytest

from trainers.training.diagnosis.loss_trend import find_loss_problem, is_due

DIVERGED = [6.6, 35.0, 16.6]


@pytest.mark.parametrize(
    ("losses", "rows", "problem"),
    [
        (DIVERGED, 16, "has risen"),
        (DIVERGED[:2], 160, "has risen"),
        ([2, 1.5, 1, 0.7, 0.5, 0.5, 0.4, 0.4, 1.9, 2.1, 2.2], 160, "has risen"),
        ([2.0] * 10 + [2.4, 2.9, 3.3, 3.5], 160, "has risen"),
        ([6.6, 5, 1, 5, 1, 5, 1, 5, 1, 5], 160, "oscillates"),
        ([6.6, 4, 3, 2, 1.5, 1.2, 1, 1, 0.9, 0.9], 160, None),
        ([2.0, 0.01, 0.02, 0.01, 0.03, 0.01, 0.02, 0.01], 160, None),
        ([0.69, 0.7, 0.71, 0.69, 0.7], 160, None),
        ([-1.0, -0.5, -0.2, 3.0], 160, None),
        (DIVERGED, 4, None),
        ([6.6], 160, None),
    ],
)
def test_the_trend_of_a_curve(losses: list[float], rows: int, problem: str | None) -> None:
    trend = find_loss_problem(losses, rows)
    assert (trend and trend.problem) == problem


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize(
    "curve",
    [lambda share: 2.0, lambda share: 2 * math.exp(-2 * share), lambda share: 2 if share < 0.1 else 0.3],
    ids=["flat", "falling", "sudden"],
)
def test_the_noise_of_rows_rarely_looks_like_divergence(curve: Callable[[float], float], batch: int) -> None:
    rng, alarms = random.Random(batch), 0
    for _ in range(20):
        for steps in (3, 20, 60):
            losses = [
                curve(step / steps) * sum(rng.lognormvariate(-0.25, 0.7) for _ in range(batch)) / batch
                for step in range(steps)
            ]
            due = (end for end in range(1, steps + 1) if is_due(end))
            alarms += any(find_loss_problem(losses[:end], batch) for end in due)
    assert alarms <= 2
