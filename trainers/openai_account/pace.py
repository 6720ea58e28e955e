"""The pace of requests to OpenAI: a rate of our own, and the waits that its responses ask for."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_WAIT_SECONDS = 600.0
# What remains of a minute when a header has no time.
DEFAULT_WAIT_SECONDS = 1.0
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class PaceStopped(Exception):
    """No further request may be sent."""


class Pace:
    """Lets threads send requests at a rate, and none while OpenAI asks to wait."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / requests_per_minute
        self._clock = clock
        self._next = self._held_until = clock()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Wait until a request may be sent, and count it; raises PaceStopped."""
        while True:
            with self._lock:
                now = self._clock()
                seconds = max(self._next, self._held_until) - now
                if seconds <= 0 and not self._stopped.is_set():
                    self._next = now + self._interval
                    return
            self.sleep(seconds)

    def hold(self, seconds: float) -> None:
        """Let no thread send a request for these seconds."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + min(seconds, MAX_WAIT_SECONDS))

    def sleep(self, seconds: float) -> None:
        """Wait; raises PaceStopped as soon as requests must stop."""
        if self._stopped.wait(max(seconds, 0.0)):
            raise PaceStopped

    def stop(self) -> None:
        """Let no further request be sent."""
        self._stopped.set()


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which OpenAI asks to repeat a request; None without such a header."""
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * factor)
        except (KeyError, ValueError):
            continue
    try:
        until = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    # The zone -0000 is that of a time without one.
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def read_exhaustion(headers: Mapping[str, str]) -> float:
    """Return the seconds until a limit that has nothing left is reset, from the headers `x-ratelimit-*`."""
    waits = [0.0]
    for limit in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{limit}") == "0":
            waits.append(_parse_duration(headers.get(f"x-ratelimit-reset-{limit}", "")))
    return max(waits)


def _parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `6m0s`, `1.5s` or `20ms`."""
    parts = _DURATION_PART.findall(text)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts) or DEFAULT_WAIT_SECONDS
