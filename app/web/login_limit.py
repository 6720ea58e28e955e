"""The limit of failed logins of one address."""

import threading
import time
from collections import OrderedDict, deque

MAX_FAILURES = 10
WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000


class LoginLimit:
    """The times of the failed logins of each address, as far as they still count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def seconds_to_wait(self, address: str, now: float | None = None) -> float:
        """Return for how long an address may not try again; 0 if it may."""
        now = time.monotonic() if now is None else now
        with self._lock:
            failures = self._failures.get(address, deque())
            recent = [failed_at for failed_at in failures if failed_at > now - WINDOW_SECONDS]
        return recent[0] + WINDOW_SECONDS - now if len(recent) >= MAX_FAILURES else 0.0

    def record_failure(self, address: str, now: float | None = None) -> None:
        """Count a failed login; the address that failed longest ago is forgotten if there are too many."""
        with self._lock:
            failures = self._failures.setdefault(address, deque(maxlen=MAX_FAILURES))
            failures.append(time.monotonic() if now is None else now)
            self._failures.move_to_end(address)
            if len(self._failures) > MAX_ADDRESSES:
                self._failures.popitem(last=False)
