"""Limits of an API key: requests per minute, and concurrent requests.

The rate limiter is the generic cell rate algorithm (ITU-T I.371). It keeps one number per key: the time at
which the key's allowance is full again. An idle key can send a whole minute's requests at once; each of them
becomes available again after its share of the minute. A rejected request costs nothing.
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
# Number of keys with a limit that can be active within one minute.
SLOTS = 4096
CELL_BYTES = 8
# Cells of a slot: the key's tag, the time at which its allowance is full, and one count of open requests for
# each process.
FULL_AT, OPEN_REQUESTS = 1, 2


@dataclass(frozen=True)
class AuthorizedClient:
    """An authorized client and the limits of its key. Without API keys the id is empty; None is unlimited."""

    key_id: str = ""
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_today: int = 0
    """Tokens that all gateways together had reported when the key was looked up."""
    models: tuple[str, ...] | None = None
    """Names that the key may use; one that ends with `*` stands for all that begin so."""

    @property
    def has_limits(self) -> bool:
        return (
            self.requests_per_minute is not None
            or self.concurrent_requests is not None
            or self.tokens_per_day is not None
        )

    def may_use(self, model: str) -> bool:
        """Return whether the key may use the model of this name."""
        return self.models is None or any(
            model.startswith(name[:-1]) if name.endswith("*") else model == name for name in self.models
        )


class RateLimits:
    """Counts per API key, in memory that the gateway's processes share after they are forked.

    Each process counts its open requests in its own column, so that the counts of a dead process can be
    cleared. There is no lock: two processes that admit a request of one key within the same microsecond may
    admit one too many.
    """

    def __init__(self, processes: int = 1, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        self.width = OPEN_REQUESTS + processes
        self.cells = memoryview(mmap.mmap(-1, SLOTS * self.width * CELL_BYTES)).cast("q")
        self.column = OPEN_REQUESTS

    def use_column(self, process: int) -> None:
        """Count in the column of this process, and clear the counts of a process that died there."""
        self.column = OPEN_REQUESTS + process
        for slot in range(0, len(self.cells), self.width):
            if self.cells[slot + self.column]:
                self.cells[slot + self.column] = 0

    def acquire(self, client: AuthorizedClient) -> Callable[[], None]:
        """Admit a request and return the function to call when it ends.

        Raises RateLimitExceeded and ConcurrencyLimitExceeded.
        """
        slot = self._slot(client.key_id)
        limit = client.concurrent_requests
        if limit is not None and self._open_requests(slot) >= limit:
            raise ConcurrencyLimitExceeded(
                f"This API key has {limit} open {'request' if limit == 1 else 'requests'}, "
                "its limit. Wait for one to end."
            )
        if client.requests_per_minute is not None:
            self._spend(slot, client.requests_per_minute)
        self.cells[slot + self.column] += 1
        return partial(self._release, slot)

    def remaining(self, client: AuthorizedClient) -> tuple[int, float]:
        """Return how many requests the key may send at once now, and in how many seconds all of them."""
        assert client.requests_per_minute is not None, "the key has a rate"
        busy = max(0, self.cells[self._slot(client.key_id) + FULL_AT] - self.clock())
        free = (WINDOW - busy) * client.requests_per_minute // WINDOW
        return max(0, free), busy / NANOSECONDS

    def _spend(self, slot: int, requests_per_minute: int) -> None:
        now = self.clock()
        full_at = max(self.cells[slot + FULL_AT], now) + WINDOW // requests_per_minute
        if full_at > now + WINDOW:
            seconds = (full_at - now - WINDOW) / NANOSECONDS
            raise RateLimitExceeded(
                f"This API key has reached its rate limit (requests per minute: {requests_per_minute}). "
                f"Try again in {math.ceil(seconds)} s.",
                seconds,
            )
        self.cells[slot + FULL_AT] = full_at

    def _release(self, slot: int) -> None:
        self.cells[slot + self.column] -= 1

    def _open_requests(self, slot: int) -> int:
        return sum(self.cells[slot + OPEN_REQUESTS : slot + self.width])

    def _slot(self, key_id: str) -> int:
        """Return the slot with the key's tag, else the first slot that holds no counts."""
        tag, now = key_tag(key_id), self.clock()
        unused = None
        for step in range(SLOTS):
            slot = (tag + step) % SLOTS * self.width
            found = self.cells[slot]
            if found == tag:
                return slot
            if unused is None and self.cells[slot + FULL_AT] <= now and not self._open_requests(slot):
                unused = slot
            if not found:
                break
        # With more active keys than slots, some keys share a slot.
        slot = tag % SLOTS * self.width if unused is None else unused
        self.cells[slot] = tag
        return slot


@lru_cache(maxsize=SLOTS)
def key_tag(key_id: str) -> int:
    """Return a number for a key that is the same in every process and never 0."""
    return int.from_bytes(blake2b(key_id.encode(), digest_size=7).digest()) + 1
