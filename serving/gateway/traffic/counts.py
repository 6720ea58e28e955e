"""What is counted of an alias's requests to one deployment, and how it travels as JSON."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from serving.gateway.request_context import CLIENT_CLOSED_REQUEST, RequestContext

# Bounds of times are powers of 10^(1/100) above a millisecond, so a time is known to 2.4 %.
SHORTEST_SECONDS = 0.001
BUCKETS_PER_DECADE = 100
MAX_BUCKET = 700
NOT_IMPLEMENTED, TOO_MANY_REQUESTS = 501, 429


@dataclass
class TrafficCounts:
    """Requests by outcome, and histograms of times: the number of requests by bucket."""

    succeeded: int = 0
    failed: int = 0
    """Status 500 or above except 501, 429 of the engine, broken streams, and attempts without a response."""
    rejected: int = 0
    """Other statuses of 400 or above: what the client has sent cannot be served."""
    cancelled: int = 0
    """Requests whose client disconnected before the response was complete."""
    seconds: Counter[int] = field(default_factory=Counter)
    """Durations of the requests that succeeded."""
    cancelled_seconds: Counter[int] = field(default_factory=Counter)
    """Times after which clients disconnected: the whole response would have taken longer."""
    first_token_seconds: Counter[int] = field(default_factory=Counter)
    """Times until a stream began."""
    cancelled_first_token_seconds: Counter[int] = field(default_factory=Counter)
    """Times after which clients disconnected from streams that had not begun."""

    def observe(self, context: RequestContext) -> None:
        """Count a request that has been closed."""
        status, seconds = context.status, context.seconds
        if status == CLIENT_CLOSED_REQUEST:
            self.cancelled += 1
            self.cancelled_seconds[find_bucket(seconds)] += 1
        elif context.stream_failed or is_failure(status):
            self.failed += 1
            return
        elif status >= 400:
            self.rejected += 1
            return
        else:
            self.succeeded += 1
            self.seconds[find_bucket(seconds)] += 1
        if not context.streamed:
            return
        if context.first_byte_seconds is not None:
            self.first_token_seconds[find_bucket(context.first_byte_seconds)] += 1
        else:
            self.cancelled_first_token_seconds[find_bucket(seconds)] += 1

    def add(self, other: "TrafficCounts") -> None:
        """Add the counts of another process or version."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON, whose keys are texts."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: {str(bucket): count for bucket, count in value.items()}
            if isinstance(value, Counter)
            else value
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrafficCounts":
        """Return the counts of `to_json`."""
        counts = cls()
        for name, value in values.items():
            is_histogram = isinstance(value, Mapping)
            histogram = {int(bucket): n for bucket, n in value.items()} if is_histogram else {}
            setattr(counts, name, Counter(histogram) if is_histogram else value)
        return counts


def is_failure(status: int) -> bool:
    """Return whether a status means that the engine or the service has failed."""
    return status == TOO_MANY_REQUESTS or (status >= 500 and status != NOT_IMPLEMENTED)


def find_bucket(seconds: float) -> int:
    """Return the number of the bucket of a time, from 0."""
    if seconds <= SHORTEST_SECONDS:
        return 0
    position = BUCKETS_PER_DECADE * math.log10(seconds / SHORTEST_SECONDS)
    # Rounding must not move a time that is a bound into the next bucket.
    return min(MAX_BUCKET, math.ceil(round(position, 6)))


def count_slower(
    completed: Mapping[int, int], cancelled: Mapping[int, int], seconds: float
) -> tuple[int, int]:
    """Return how many requests took longer than this, and of how many.

    One that its client cancelled later than that was slower, too; of one that was cancelled earlier nothing
    is known.
    """
    bucket = find_bucket(seconds)
    late = sum(count for each, count in cancelled.items() if each > bucket)
    slower = sum(count for each, count in completed.items() if each > bucket) + late
    return slower, sum(completed.values()) + late


def estimate_quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the upper bound of the bucket with a quantile, in seconds; None without any time."""
    left = share * sum(histogram.values())
    for bucket in sorted(histogram):
        left -= histogram[bucket]
        if left <= 1e-9:
            return float(SHORTEST_SECONDS * 10 ** (bucket / BUCKETS_PER_DECADE))
    return None
