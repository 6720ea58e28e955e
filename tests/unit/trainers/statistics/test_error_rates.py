"""A small version of tests/benchmarks/trainers/paired_tests.py: 400 evaluations with a fixed seed."""

from collections.abc import Callable

import pytest

from tests.benchmarks.trainers.simulated_evaluations import (
    simulate_clusters,
    simulate_corpus,
    simulate_early_stop,
    simulate_growth,
    simulate_means,
    simulate_shares,
)

RUNS = 400
# The rates of 400 runs have a standard error of one point.
MOST_CALLED, LEAST_CONTAINED = 0.08, 0.925


@pytest.mark.parametrize("simulate", [simulate_shares, simulate_means])
@pytest.mark.parametrize(("n", "discordant"), [(30, 0.3), (100, 0.1)])
def test_equal_models_are_rarely_called_different(
    simulate: Callable[..., tuple[float, float]], n: int, discordant: float
) -> None:
    called, contained = simulate(n, discordant, 0.0, RUNS)
    assert called <= MOST_CALLED
    assert contained >= LEAST_CONTAINED


def test_equal_corpora_are_rarely_called_different() -> None:
    assert simulate_corpus("BLEU", 60, 0.3, 0.0, RUNS)[0] <= MOST_CALLED


def test_intervals_contain_the_true_difference() -> None:
    assert simulate_shares(100, 0.2, 0.1, RUNS)[1] >= LEAST_CONTAINED
    assert simulate_means(100, 0.2, 0.04, RUNS)[1] >= LEAST_CONTAINED


def test_three_points_are_found_at_1319_rows() -> None:
    assert simulate_shares(1319, 0.15, 0.03, 4000)[0] >= 0.79


def test_only_respected_clusters_keep_the_error_rate() -> None:
    assert simulate_clusters(30, 5, RUNS, respected=True)[0] <= MOST_CALLED
    assert simulate_clusters(30, 5, RUNS, respected=False)[0] > 0.15


def test_a_gate_that_looks_after_every_row_passes_few_equal_models() -> None:
    assert simulate_growth(500, 0.2, 0.0, RUNS)[0] <= 0.05
    assert simulate_growth(500, 0.2, -0.05, RUNS, margin=0.05)[0] <= 0.05
    assert simulate_growth(500, 0.1, 0.1, 100)[0] >= 0.95


@pytest.mark.parametrize(("n", "runs"), [(200, 100), pytest.param(1000, 4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("discordant", "margin"), [(0.02, 0.0), (0.1, 0.0), (0.3, 0.0), (0.1, 0.05)])
def test_an_evaluation_that_stops_early_passes_few_models_that_are_not_good_enough(
    n: int, runs: int, discordant: float, margin: float
) -> None:
    shares, _ = simulate_early_stop(n, discordant, -margin, runs, margin)
    assert shares.get("met", 0.0) <= 0.05
    assert shares.get("worse", 0.0) <= 0.05
