"""The correction of the best loss for the number of models that were tried."""

import numpy as np
import pytest

from trainers.statistics.selection import corrected_loss, loss_interval


def test_the_correction_removes_the_optimism_of_a_choice_among_equal_models() -> None:
    generator = np.random.default_rng(3)
    chosen, corrected = [], []
    for _ in range(20):
        losses_mb = generator.normal(1.0, 0.3, size=(12, 20))
        chosen.append(losses_mb.mean(axis=1).min())
        corrected.append(corrected_loss(losses_mb).value)
    # The expected minimum of 12 means with a standard error of 0.067 is 1.63 of them below 1.
    assert np.mean(chosen) == pytest.approx(0.89, abs=0.02)
    assert np.mean(corrected) == pytest.approx(1.0, abs=0.04)


def test_without_a_choice_there_is_nothing_to_correct() -> None:
    losses_b = np.random.default_rng(1).normal(2.0, 0.1, size=50)
    assert corrected_loss(losses_b[None]).value == pytest.approx(losses_b.mean(), abs=0.01)


def test_the_interval_of_a_loss_has_the_width_of_its_standard_error() -> None:
    losses_b = np.random.default_rng(2).normal(2.0, 1.0, size=200)
    interval = loss_interval(2.5, losses_b)
    error = losses_b.std() / np.sqrt(200)
    assert (interval.low, interval.high) == pytest.approx((2.5 - 1.96 * error, 2.5 + 1.96 * error), abs=0.02)
