"""Correction of the loss of the best of several models for the number of models from which it was chosen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class LossInterval:
    """A loss with its 95 % interval."""

    value: float
    low: float
    high: float


def loss_interval(loss: float, losses_b: NDArray[np.float64], seed: int = 0) -> LossInterval:
    """Return the percentile-bootstrap interval of a loss from the mean losses of blocks of rows.

    Shapes: b is the number of blocks. The interval is that of the blocks' mean, moved to the loss, which may
    weight rows otherwise.
    """
    chosen = np.random.default_rng(seed).integers(len(losses_b), size=(RESAMPLES, len(losses_b)))
    low, high = np.quantile(losses_b[chosen].mean(axis=1), [0.025, 0.975]) - losses_b.mean()
    return LossInterval(loss, loss + float(low), loss + float(high))


def corrected_loss(losses_mb: NDArray[np.float64], seed: int = 0) -> LossInterval:
    """Return the loss to expect on new rows from a model that is chosen as the best of m on b blocks of rows.

    The bootstrap repeats the choice on resampled blocks, and measures the chosen model on the blocks that
    are not among them (bootstrap bias correction: Tsamardinos, Greasidou and Borboudakis, 2018,
    doi:10.1007/s10994-018-5714-4).
    """
    n_blocks = losses_mb.shape[1]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(n_blocks, size=n_blocks)
        left_out = np.setdiff1d(np.arange(n_blocks), chosen)
        if len(left_out):
            best = int(losses_mb[:, chosen].mean(axis=1).argmin())
            found.append(losses_mb[best, left_out].mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return LossInterval(float(np.mean(found)), float(low), float(high))
