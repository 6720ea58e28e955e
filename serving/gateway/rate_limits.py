"""How much one API key may ask: requests a minute, and requests at once.

The rate is the generic cell rate algorithm (ITU-T I.371): one number for a key, the time at which its
allowance would be full again. A key that has rested may spend a whole minute's requests at once; each comes
back after its share of the minute. A request that is refused costs nothing.
"""

import math
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b

from serving.http.errors import ConcurrencyLimitExceeded, RateLimitExceeded

NANOSECONDS = 1_000_000_000
WINDOW = 60 * NANOSECONDS
# Keys with a limit that can be busy within one minute.
SLOTS = 4096
CELL_BYTES = 8
# Cells of a place: the key's tag, when its allowance is full again, and what runs in each process.
FULL_AT, RUNNING = 1, 2


@dataclass(frozen=True)
class AuthorizedClient:
    """Who was let in, and what the key may ask; without keys the id is empty. None is no limit."""

    key_id: str = ""
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None

    @property
    def limited(self) -> bool:
        return self.requests_per_minute is not None or self.concurrent_requests is not None


class RateLimits:
    """What keys have asked of a gateway, in memory that its processes share once they are forked.

    Each process counts the requests that run in a column of its own, so that those of a dead one are
    forgotten with it. There is no lock: two processes that admit a request of one key within the same
    microsecond may let one too many through.
    """

    def __init__(self, processes: int = 1) -> None:
        self.width = RUNNING + processes
        self.cells = memoryview(mmap.mmap(-1, SLOTS * self.width * CELL_BYTES)).cast("q")
        self.column = RUNNING

    def count_as(self, process: int) -> None:
        """Count in the column of this process, in which an earlier one may have died."""
        self.column = RUNNING + process
        for slot in range(0, len(self.cells), self.width):
            if self.cells[slot + self.column]:
                self.cells[slot + self.column] = 0

    def enter(self, caller: AuthorizedClient) -> Callable[[], None]:
        """Admit a request; what is given has to be called when it ends.

        Raises RateLimitExceeded and TooManyAtOnce.
        """
        slot = self._slot(caller.key_id)
        if caller.concurrent_requests is not None and self._running(slot) >= caller.concurrent_requests:
            raise ConcurrencyLimitExceeded(
                f"This key may have {caller.concurrent_requests} requests under way at once, and has them; "
                "wait for one to end."
            )
        if caller.requests_per_minute is not None:
            self._spend(slot, caller.requests_per_minute)
        self.cells[slot + self.column] += 1
        return partial(self._leave, slot)

    def _spend(self, slot: int, requests_per_minute: int) -> None:
        now = time.monotonic_ns()
        full_at = max(self.cells[slot + FULL_AT], now) + WINDOW // requests_per_minute
        if full_at > now + WINDOW:
            seconds = math.ceil((full_at - now - WINDOW) / NANOSECONDS)
            raise RateLimitExceeded(
                f"This key may send {requests_per_minute} requests a minute, and has; "
                f"try again in {seconds} s.",
                seconds,
            )
        self.cells[slot + FULL_AT] = full_at

    def _leave(self, slot: int) -> None:
        self.cells[slot + self.column] -= 1

    def _running(self, slot: int) -> int:
        return sum(self.cells[slot + RUNNING : slot + self.width])

    def _slot(self, key_id: str) -> int:
        """Where a key is counted: the place that bears its tag, else the first that counts nothing."""
        mark, now = tag(key_id), time.monotonic_ns()
        unused = None
        for step in range(SLOTS):
            slot = (mark + step) % SLOTS * self.width
            held = self.cells[slot]
            if held == mark:
                return slot
            if unused is None and self.cells[slot + FULL_AT] <= now and not self._running(slot):
                unused = slot
            if not held:
                break
        # More keys than places within one minute: some are counted together.
        slot = mark % SLOTS * self.width if unused is None else unused
        self.cells[slot] = mark
        return slot


@lru_cache(maxsize=SLOTS)
def tag(key_id: str) -> int:
    """A number for a key, the same in every process and never 0."""
    return int.from_bytes(blake2b(key_id.encode(), digest_size=7).digest()) + 1
