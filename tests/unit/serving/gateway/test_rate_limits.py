"""Limits of an API key, counted in one process and in several, under a clock that the test sets."""

import os

import pytest

from serving.gateway import rate_limits
from serving.gateway.rate_limits import NANOSECONDS, WINDOW, AuthorizedClient, RateLimits
from serving.http.errors import ConcurrencyLimitExceeded, RateLimitExceeded


class FixedClock:
    """Nanoseconds that only the test advances."""

    now = 1_000 * WINDOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


def count_admitted(limits: RateLimits, client: AuthorizedClient, requests: int) -> int:
    """Return how many of the requests are admitted."""
    return sum(try_acquire(limits, client) for _ in range(requests))


def try_acquire(limits: RateLimits, client: AuthorizedClient) -> bool:
    try:
        limits.acquire(client)
    except RateLimitExceeded:
        return False
    return True


def test_a_minutes_requests_may_arrive_at_once_and_the_next_waits_for_its_share(clock: FixedClock) -> None:
    limits, client = RateLimits(clock=clock), AuthorizedClient("key_a", requests_per_minute=20)
    assert count_admitted(limits, client, 30) == 20
    with pytest.raises(RateLimitExceeded) as rejected:
        limits.acquire(client)
    headers = dict(rejected.value.headers())
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"3", b"3000")


def test_the_allowance_returns_with_time_and_rejected_requests_cost_nothing(clock: FixedClock) -> None:
    limits, client = RateLimits(clock=clock), AuthorizedClient("key_a", requests_per_minute=600)
    assert count_admitted(limits, client, 700) == 600
    # One request has a share of 0.1 s; the 100 rejected requests must not have extended it.
    clock.now += NANOSECONDS // 10 - 1
    assert not try_acquire(limits, client)
    clock.now += 1
    assert (try_acquire(limits, client), try_acquire(limits, client)) == (True, False)


def test_concurrent_requests_are_admitted_up_to_the_limit() -> None:
    limits, client = RateLimits(), AuthorizedClient("key_a", concurrent_requests=2)
    release = limits.acquire(client)
    limits.acquire(client)
    with pytest.raises(ConcurrencyLimitExceeded, match="2 open requests"):
        limits.acquire(client)
    release()
    limits.acquire(client)


def test_a_request_rejected_for_its_rate_does_not_count_as_open(clock: FixedClock) -> None:
    limits = RateLimits(clock=clock)
    client = AuthorizedClient("key_a", requests_per_minute=1, concurrent_requests=2)
    assert count_admitted(limits, client, 5) == 1
    assert count_admitted(limits, AuthorizedClient("key_a", concurrent_requests=2), 5) == 1


def test_keys_in_neighbouring_slots_are_counted_separately(
    monkeypatch: pytest.MonkeyPatch, clock: FixedClock
) -> None:
    monkeypatch.setattr(rate_limits, "SLOTS", 16)
    limits = RateLimits(clock=clock)
    clients = [AuthorizedClient(f"key_{number}", requests_per_minute=3) for number in range(16)]
    assert [count_admitted(limits, client, 5) for client in clients] == [3] * 16
    assert [count_admitted(limits, client, 5) for client in clients] == [0] * 16


def test_a_slot_without_counts_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "SLOTS", 4)
    limits = RateLimits()
    for number in range(40):
        limits.acquire(AuthorizedClient(f"key_{number}", concurrent_requests=1))()
    assert count_admitted(limits, AuthorizedClient("key_new", concurrent_requests=3), 5) == 3


def test_forked_processes_count_together_and_a_dead_one_leaves_no_open_requests(clock: FixedClock) -> None:
    limits = RateLimits(processes=2, clock=clock)
    client = AuthorizedClient("key_a", requests_per_minute=10, concurrent_requests=5)
    child = os.fork()
    if not child:
        limits.use_column(1)
        os._exit(count_admitted(limits, client, 4))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    limits.use_column(0)
    assert count_admitted(limits, client, 5) == 1
    limits.use_column(1)
    assert count_admitted(limits, client, 9) == 4
