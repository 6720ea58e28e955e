"""The limits of a program stay in force after an error that nobody expects."""

import time
from typing import Any

import pytest

from workers.hosts import resource_limits
from workers.hosts.resource_limits import ExceededLimit, LimitWatch


class UnreadableOnce:
    """Limits that cannot be read the first time, for a reason that nobody expects."""

    exist = True
    max_memory_bytes = max_disk_bytes = None
    n_reads = 0

    @property
    def max_seconds(self) -> float:
        self.n_reads += 1
        if self.n_reads == 1:
            raise RuntimeError("odd")
        return 0.0


def test_a_limit_is_enforced_after_an_error_of_its_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_limits, "MEASURE_SECONDS", 0.01)
    limits: Any = UnreadableOnce()
    watch = LimitWatch(limits)
    watch.start()
    deadline = time.monotonic() + 60
    while watch.exceeded is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(watch.exceeded, ExceededLimit) and watch.exceeded.limit == "max_seconds"
