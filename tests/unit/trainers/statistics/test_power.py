"""Power: against simulation, and as people read it."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from trainers.statistics.expected_power import describe_expected_power, estimate_detectable_share
from trainers.statistics.paired_tests.mcnemar import mid_p
from trainers.statistics.power import (
    describe_power,
    detectable_mean,
    detectable_share,
    share_power,
)


@pytest.mark.parametrize(("n", "discordant", "difference"), [(100, 0.2, 0.1), (240, 0.1, 0.05)])
def test_the_power_of_shares_is_that_of_simulated_evaluations(
    n: int, discordant: float, difference: float
) -> None:
    rng, size = np.random.default_rng(0), 4000
    m = rng.binomial(n, discordant, size)
    wins = rng.binomial(m, (1 + difference / discordant) / 2)
    found = np.mean([mid_p(w, k - w) <= 0.05 and 2 * w > k for w, k in zip(wins, m, strict=True)])
    assert share_power(n, discordant, difference) == pytest.approx(found, abs=0.025)


def test_three_points_on_gsm8k_are_found_with_80_percent() -> None:
    assert share_power(1319, 0.15, 0.03) >= 0.8
    assert (detectable_share(1319, 0.15) or 1) <= 0.03
    assert (detectable_share(1319, 0.05) or 1) < 0.02


@pytest.mark.parametrize(("n", "discordant"), [(30, 0.0), (100, 0.3), (5000, 0.02)])
def test_a_detectable_difference_is_found_with_80_percent(n: int, discordant: float) -> None:
    difference = detectable_share(n, discordant) or 0.0
    assert share_power(n, discordant, difference) == pytest.approx(0.8, abs=1e-3)


def test_four_rows_find_nothing() -> None:
    assert detectable_share(4) is None
    assert detectable_share(5) is not None
    assert detectable_mean(0.1, 5) is None
    assert detectable_mean(0.0, 100) is None


def test_the_power_of_means_is_that_of_statsmodels() -> None:
    power = TTestPower().solve_power(effect_size=None, nobs=100, alpha=0.05, power=0.8)
    assert detectable_mean(0.3 / np.sqrt(100), 100) == pytest.approx(power * 0.3, rel=0.01)


def test_power_is_a_sentence() -> None:
    assert describe_power(240, 0.0814, is_share=True) == (
        "With 240 rows, a true difference of 8.1 percentage points would be found with a probability of 80%."
    )
    assert "1.35 would" in describe_power(1, 1.3512, is_share=False)
    assert "unknown" in describe_power(4, None, is_share=True)


@pytest.mark.parametrize("n", [150, 240, 1319, 100_000])
@pytest.mark.parametrize("discordant", [0.05, 0.2, 0.3])
def test_the_estimate_before_an_evaluation_is_close_to_the_exact_power(n: int, discordant: float) -> None:
    estimate = estimate_detectable_share(n, discordant)
    assert estimate == pytest.approx(detectable_share(n, discordant), rel=0.1)


def test_the_estimate_is_a_sentence_with_its_assumption() -> None:
    assert describe_expected_power(240).startswith(
        "With 240 rows, a true difference of about 8 percentage points would be found with a "
    )
    assert describe_expected_power(240).endswith("only one is right on 20% of the rows.")
    assert describe_expected_power(4).startswith("4 rows cannot show a difference")
