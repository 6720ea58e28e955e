"""What the gateway counts and logs of each request."""

import logging
import time
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram

SECONDS_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
REQUESTS = Counter("tunesmith_gateway_requests", "Requests to the gateway.", ["model", "status"])
SECONDS = Histogram(
    "tunesmith_gateway_request_seconds", "Seconds of a whole request.", ["model"], buckets=SECONDS_BUCKETS
)
FIRST_BYTE_SECONDS = Histogram(
    "tunesmith_gateway_first_byte_seconds",
    "Seconds until the answer begins.",
    ["model"],
    buckets=SECONDS_BUCKETS,
)
# A model name comes from the client, and only names with a route may become labels.
NO_ROUTE = "none"
CLIENT_LEFT = 499
logger = logging.getLogger("tunesmith.gateway")


@dataclass
class Exchange:
    """One request on its way through; `status` ends as 499 if the client left and 502 if a stream broke."""

    request_id: str
    method: str
    path: str
    model: str = NO_ROUTE
    status: int = CLIENT_LEFT
    first_byte_seconds: float | None = None
    begun: float = field(default_factory=time.perf_counter)

    def started(self, status: int) -> None:
        """Note that the answer begins."""
        self.status = status
        self.first_byte_seconds = time.perf_counter() - self.begun

    def left(self) -> None:
        """Note that the client did not stay to the end."""
        self.status = CLIENT_LEFT

    def ended(self) -> None:
        """Count the request and log its line."""
        seconds = time.perf_counter() - self.begun
        REQUESTS.labels(self.model, str(self.status)).inc()
        SECONDS.labels(self.model).observe(seconds)
        if self.first_byte_seconds is not None:
            FIRST_BYTE_SECONDS.labels(self.model).observe(self.first_byte_seconds)
        facts = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "model": self.model,
            "status": self.status,
            "first_byte_seconds": self.first_byte_seconds,
            "duration_seconds": seconds,
        }
        logger.info("%s %s %s %s", self.method, self.path, self.model, self.status, extra=facts)
