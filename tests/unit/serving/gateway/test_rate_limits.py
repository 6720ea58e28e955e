"""What one key may ask, counted in one process and in several."""

import os
import time

import pytest

from serving.gateway import rate_limits
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.http.errors import ConcurrencyLimitExceeded, RateLimitExceeded


def admitted(limits: RateLimits, caller: AuthorizedClient, asked: int) -> int:
    """How many of so many requests are let through."""
    return sum(tried(limits, caller) for _ in range(asked))


def tried(limits: RateLimits, caller: AuthorizedClient) -> bool:
    try:
        limits.enter(caller)
    except RateLimitExceeded:
        return False
    return True


def test_a_minutes_requests_may_come_at_once_and_the_next_has_to_wait_for_its_share() -> None:
    limits, caller = RateLimits(), AuthorizedClient("key_a", requests_per_minute=20)
    assert admitted(limits, caller, 30) == 20
    with pytest.raises(RateLimitExceeded) as refused:
        limits.enter(caller)
    assert refused.value.retry_after_seconds == 3
    assert refused.value.headers()[-1] == (b"retry-after", b"3")


def test_the_allowance_comes_back_with_time_and_refusals_cost_nothing() -> None:
    limits, caller = RateLimits(), AuthorizedClient("key_a", requests_per_minute=600)
    assert admitted(limits, caller, 700) == 600
    began = time.monotonic()
    while not tried(limits, caller):
        assert time.monotonic() - began < 10
    # A tenth of a second is the share of one; the 100 refusals before must not have pushed it back.
    assert time.monotonic() - began < 0.2


def test_as_many_as_are_allowed_are_under_way_at_once() -> None:
    limits, caller = RateLimits(), AuthorizedClient("key_a", concurrent_requests=2)
    leave = limits.enter(caller)
    limits.enter(caller)
    with pytest.raises(ConcurrencyLimitExceeded, match="2 requests"):
        limits.enter(caller)
    leave()
    limits.enter(caller)


def test_a_request_refused_for_its_rate_is_not_under_way() -> None:
    limits, caller = RateLimits(), AuthorizedClient("key_a", requests_per_minute=1, concurrent_requests=2)
    assert admitted(limits, caller, 5) == 1
    assert admitted(limits, AuthorizedClient("key_a", concurrent_requests=2), 5) == 1


def test_keys_do_not_pay_for_each_other_even_in_neighbouring_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "SLOTS", 16)
    limits = RateLimits()
    callers = [AuthorizedClient(f"key_{number}", requests_per_minute=3) for number in range(16)]
    assert [admitted(limits, caller, 5) for caller in callers] == [3] * 16
    assert [admitted(limits, caller, 5) for caller in callers] == [0] * 16


def test_a_place_whose_key_has_nothing_left_to_count_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "SLOTS", 4)
    limits = RateLimits()
    for number in range(40):
        limits.enter(AuthorizedClient(f"key_{number}", concurrent_requests=1))()
    assert admitted(limits, AuthorizedClient("key_new", concurrent_requests=3), 5) == 3


def test_forked_processes_count_together_and_a_dead_one_leaves_nothing_under_way() -> None:
    limits = RateLimits(processes=2)
    caller = AuthorizedClient("key_a", requests_per_minute=10, concurrent_requests=5)
    child = os.fork()
    if not child:
        limits.count_as(1)
        os._exit(admitted(limits, caller, 4))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    limits.count_as(0)
    assert admitted(limits, caller, 5) == 1
    limits.count_as(1)
    assert admitted(limits, caller, 9) == 4
