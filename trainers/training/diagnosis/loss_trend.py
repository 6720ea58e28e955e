"""Whether the loss of training rises or oscillates, from what has been logged so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trainers.configs.training import TrainingConfig

# The losses of rows differ, so smaller samples vary by chance. `test_loss_trend.py` simulates how
# often a healthy run gives an alarm.
MIN_ROWS = 64
# Parts of the run whose means are compared.
PARTS = 4
# A rise counts from these shares of the first loss on: above the first, above the lowest, and at the very
# start of a run, where only single logs can be compared.
RISE_ABOVE_FIRST = 0.5
RISE_ABOVE_LOWEST = 0.75
EARLY_RISE = 1.5
MIN_ROWS_OF_EARLY_LOSS = 16
# Swings between two logs count as oscillation from this share of the present loss on, or of a quarter of the
# first: where the loss is almost 0, any swing is large compared with it.
SWING_SHARE = 0.5
MIN_SWINGS = 6


@dataclass(frozen=True)
class LossTrend:
    """The means of the loss at the start, at its lowest and now, and what is wrong with them."""

    first: float
    lowest: float
    last: float
    problem: str


def find_loss_problem(losses: Sequence[float], rows_per_loss: int) -> LossTrend | None:
    """Return the trend if the loss has risen far above its first or lowest values, or swings widely."""
    if losses[0] <= 0:
        # Some losses of DPO are negative, so no share of them is a measure.
        return None
    window = max(len(losses) // PARTS, math.ceil(MIN_ROWS / rows_per_loss))
    if len(losses) < 2 * window:
        has_risen = losses[-1] > (1 + EARLY_RISE) * losses[0]
        is_sampled = rows_per_loss >= MIN_ROWS_OF_EARLY_LOSS
        return (
            LossTrend(losses[0], min(losses), losses[-1], "has risen") if has_risen and is_sampled else None
        )
    means = _window_means(losses, window)
    trend = LossTrend(means[0], min(means[:-window]), means[-1], "has risen")
    is_above_first = trend.last > (1 + RISE_ABOVE_FIRST) * trend.first
    if is_above_first or trend.last - trend.lowest > RISE_ABOVE_LOWEST * trend.first:
        return trend
    recent = losses[-max(2 * window, MIN_SWINGS + 1) :]
    if rows_per_loss >= MIN_ROWS and _swings(recent, SWING_SHARE * max(trend.last, trend.first / 4)):
        return replace(trend, problem="oscillates")
    return None


def _swings(losses: Sequence[float], width: float) -> bool:
    """Return whether most changes are wider than `width` and opposite to the one before."""
    changes = [later - earlier for earlier, later in pairwise(losses)]
    wide = [
        change
        for before, change in pairwise(changes)
        if abs(change) > width and abs(before) > width and change * before < 0
    ]
    return len(changes) >= MIN_SWINGS and len(wide) > len(changes) / 2


def describe_trend(config: TrainingConfig, step: int, trend: LossTrend) -> str:
    """Return the warning about a trend, with settings to change."""
    return (
        f"By step {step} the loss {trend.problem}: {trend.first:.4g} at first, {trend.lowest:.4g} at its "
        f"lowest, {trend.last:.4g} now, each a mean of several steps where there are enough. Lower "
        f"learning_rate, now {config.learning_rate:g} (the default of {config.tuning.method} tuning is "
        f"{config.default_learning_rates[config.tuning.method]:g}), or raise warmup_ratio or batch_size."
    )


def is_due(count: int) -> bool:
    """Return whether to look at the trend after `count` losses; it reads all, so a long run looks rarely."""
    return count % max(1, count // 16) == 0


def _window_means(losses: Sequence[float], window: int) -> list[float]:
    total = sum(losses[:window])
    means = [total / window]
    for start in range(1, len(losses) - window + 1):
        total += losses[start + window - 1] - losses[start - 1]
        means.append(total / window)
    return means
