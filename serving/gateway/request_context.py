"""Request contexts: the measurements and log fields of each request."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable

from serving.gateway.downstream import Downstream, Headers
from serving.gateway.metrics import REQUEST_METRICS
from serving.http.errors import ApiError, InternalError

# Model names come from clients, and only names with a route may become metric labels.
NO_ROUTE = "none"
# nginx's status for a client that disconnected before its response was complete.
CLIENT_CLOSED_REQUEST = 499
SAFE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
PROMPT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
COMPLETION_TOKENS = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')
USAGE = re.compile(rb'"usage"\s*:\s*\{')

FLUSH_SECONDS = 0.2
MAX_PENDING = 1000
LOG_FIELDS = (
    "request_id",
    "method",
    "path",
    "model",
    "key_id",
    "status",
    "first_byte_seconds",
    "seconds",
    "prompt_tokens",
    "completion_tokens",
)

# Alias, its version, and the id of the deployment.
TrafficKey = tuple[str, int, str]

logger = logging.getLogger("tunesmith.gateway")


class RequestContext:
    """One request. `status` becomes 499 if the client disconnected, and 502 if the stream broke."""

    __slots__ = (
        "completion_tokens",
        "estimated_tokens",
        "first_byte_seconds",
        "key_id",
        "limit_headers",
        "method",
        "model",
        "path",
        "prompt_tokens",
        "recorder",
        "release_limits",
        "request_id",
        "response_tail",
        "seconds",
        "started_at",
        "status",
        "stream_failed",
        "streamed",
        "traffic_key",
    )

    def __init__(self, method: str, path: str, client_id: bytes | None, recorder: "RequestRecorder") -> None:
        self.started_at = time.perf_counter()
        self.method = method
        self.path = path
        self.request_id = choose_request_id(client_id)
        self.recorder = recorder
        self.model = NO_ROUTE
        self.key_id = ""
        self.release_limits: Callable[[], None] | None = None
        self.status = CLIENT_CLOSED_REQUEST
        self.first_byte_seconds: float | None = None
        self.response_tail = b""
        self.traffic_key: TrafficKey | None = None
        self.streamed = False
        self.stream_failed = False
        self.limit_headers: Headers = []
        self.estimated_tokens = 0
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def start_response(self, status: int) -> None:
        """Record the status and the time of the first byte."""
        self.status = status
        self.first_byte_seconds = time.perf_counter() - self.started_at

    def close(self) -> None:
        """Release the key's concurrency slot, and schedule metrics and log."""
        release, self.release_limits = self.release_limits, None
        if release is not None:
            release()
        self.seconds = time.perf_counter() - self.started_at
        self.recorder.add(self)

    def fail(self, error: Exception, downstream: Downstream) -> None:
        """Respond with an error and close; an exception other than ApiError is a bug, and only logged."""
        if not isinstance(error, ApiError):
            logger.error("%s %s failed", self.method, self.path, exc_info=error)
            error = InternalError("The gateway failed to handle this request. Its log has the details.")
        self.start_response(error.status)
        self.close()
        headers = [*error.headers(), *self.limit_headers, (b"x-request-id", self.request_id.encode())]
        downstream.respond(error.status, headers, error.body())

    def used_tokens(self) -> int:
        """Return the tokens of the request; estimated if a stream ended before its usage."""
        if self.prompt_tokens is None:
            return self.estimated_tokens
        return self.prompt_tokens + (self.completion_tokens or 0)

    def record_metrics(self) -> None:
        """Add the request to the metrics, with the token counts from the end of the response."""
        if self.response_tail:
            self._parse_usage(self.response_tail)
        REQUEST_METRICS.for_model(self.model).observe(
            self.status, self.seconds, self.first_byte_seconds, self.prompt_tokens, self.completion_tokens
        )

    def _parse_usage(self, tail: bytes) -> None:
        if (place := find_usage(tail)) < 0:
            return
        prompt = PROMPT_TOKENS.search(tail, place)
        completion = COMPLETION_TOKENS.search(tail, place)
        self.prompt_tokens = int(prompt[1]) if prompt else None
        self.completion_tokens = int(completion[1]) if completion else None


class RequestRecorder:
    """Collects closed contexts, and measures and logs them together five times a second.

    One by one, between two requests, the same work takes about twice the CPU time: by then its code and data
    have left the processor's caches.
    """

    def __init__(
        self,
        log: Callable[[list[RequestContext]], None],
        observe: Callable[[RequestContext], None] = lambda context: None,
    ) -> None:
        self.log = log
        self.observe = observe
        self.pending: list[RequestContext] = []
        self.timer: asyncio.TimerHandle | None = None

    def add(self, context: RequestContext) -> None:
        """Add a closed context."""
        self.pending.append(context)
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(self.pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Measure and log the pending contexts."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        pending, self.pending = self.pending, []
        for context in pending:
            context.record_metrics()
            self.observe(context)
        if pending:
            self.log(pending)


def find_usage(content: bytes) -> int:
    """Return where the last usage object begins, -1 without one.

    A quote inside a JSON string is escaped, so generated text cannot be mistaken for the object.
    """
    place = content.rfind(b'"usage"')
    while place >= 0 and not USAGE.match(content, place):
        # The name as a value, such as that of a token.
        place = content.rfind(b'"usage"', 0, place)
    return place


def choose_request_id(client_id: bytes | None) -> str:
    """Return the client's request id if it is safe to log, else a new one."""
    if client_id is not None and SAFE_REQUEST_ID.fullmatch(client_id):
        return client_id.decode()
    # An id must be unique, not secret, and os.urandom costs more than the rest of the access log's line.
    return f"req_{random.getrandbits(96):024x}"


def log_requests(contexts: list[RequestContext]) -> None:
    """Log requests through the standard logging module."""
    for context in contexts:
        fields = {name: getattr(context, name) for name in LOG_FIELDS}
        arguments = context.method, context.path, context.model, context.status
        logger.info("%s %s %s %s", *arguments, extra=fields)
