"""Waits between requests to OpenAI, from a clock that the test moves and from the headers of responses."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from trainers.openai_account.pace import Pace, PaceStopped, read_exhaustion, read_retry_after


class Clock:
    """A clock that moves while a thread sleeps."""

    def __init__(self, pace_minutes: int = 60) -> None:
        self.now = 100.0
        self.pace = Pace(pace_minutes, lambda: self.now)
        self.slept: list[float] = []
        self.pace.sleep = self._sleep  # type: ignore[method-assign]

    def _sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.now += seconds


def test_requests_follow_at_the_rate() -> None:
    clock = Clock(120)
    for _ in range(3):
        clock.pace.wait()
    assert clock.slept == [0.5, 0.5]


def test_no_request_follows_while_openai_asks_to_wait() -> None:
    clock = Clock(60_000)
    clock.pace.wait()
    clock.pace.hold(7)
    clock.pace.hold(3)
    clock.pace.wait()
    assert sum(clock.slept) == pytest.approx(7)


def test_a_thread_that_waits_is_stopped() -> None:
    pace = Pace(1)
    pace.wait()
    threading.Timer(0.05, pace.stop).start()
    with pytest.raises(PaceStopped):
        pace.wait()


def test_the_time_of_a_repetition_is_read_from_each_form_of_the_header() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
    assert read_retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert read_retry_after({"retry-after": "2"}) == 2
    assert 3300 < (read_retry_after({"retry-after": later}) or 0) <= 3600
    assert read_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}) == 0
    assert read_retry_after({}) is None and read_retry_after({"retry-after": "soon"}) is None


def test_a_limit_with_nothing_left_is_waited_for() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s"}
    assert read_exhaustion(headers) == 60.5
    assert read_exhaustion(headers | {"x-ratelimit-remaining-requests": "3"}) == 0
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}
    assert read_exhaustion(tokens) == 0.02
