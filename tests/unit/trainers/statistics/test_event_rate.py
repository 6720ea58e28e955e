"""Limits of an event's rate. Goal: they hold at all looks together. Method: exact probabilities."""

from collections import defaultdict

import pytest

from trainers.statistics.event_rate import rate_limits, requests_needed


def miss_probability(rate: float, n: int) -> tuple[float, float]:
    """Return how likely each limit excludes the true rate at one of the first n requests."""
    excluded: dict[tuple[int, int], tuple[bool, bool]] = {}
    missed = [0.0, 0.0]
    for side in (0, 1):
        left = {0: 1.0}
        for requests in range(1, n + 1):
            following: dict[int, float] = defaultdict(float)
            for events, probability in left.items():
                following[events] += probability * (1 - rate)
                following[events + 1] += probability * rate
            left = {}
            for events, probability in following.items():
                if probability < 1e-9:
                    continue
                if (events, requests) not in excluded:
                    lower, upper = rate_limits(events, requests)
                    excluded[events, requests] = lower > rate, upper < rate
                if excluded[events, requests][side]:
                    missed[side] += probability
                else:
                    left[events] = probability
    return missed[0], missed[1]


@pytest.mark.parametrize(("rate", "n"), [(0.02, 150), (0.1, 70)])
def test_each_limit_misses_the_true_rate_at_any_look_in_at_most_2_5_percent(rate: float, n: int) -> None:
    below, above = miss_probability(rate, n)
    assert 0 < below <= 0.025 and 0 <= above <= 0.025


def test_the_limits_contain_the_measured_rate_and_narrow() -> None:
    wide, narrow = rate_limits(5, 100), rate_limits(500, 10_000)
    assert 0 < wide[0] < narrow[0] < 0.05 < narrow[1] < wide[1] < 1


@pytest.mark.parametrize(("events", "n", "limits"), [(0, 0, (0, 1)), (0, 9, (0, 0.41)), (9, 9, (0.5, 1))])
def test_extreme_counts_have_limits(events: int, n: int, limits: tuple[float, float]) -> None:
    assert rate_limits(events, n) == pytest.approx(limits, abs=0.02)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.5])
def test_the_requests_needed_are_the_fewest(rate: float) -> None:
    n = requests_needed(rate)
    assert rate_limits(0, n)[1] <= rate < rate_limits(0, n - 1)[1]
