"""One request on its way through the gateway: what is counted and logged of it."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable

from serving.gateway.metrics import REQUEST_METRICS

# A model name comes from the client, and only names with a route may become labels.
NO_ROUTE = "none"
CLIENT_CLOSED_REQUEST = 499
SAFE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
PROMPT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
COMPLETION_TOKENS = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')
USAGE = re.compile(rb'"usage"\s*:\s*\{')

SETTLE_SECONDS = 0.2
MOST_PENDING = 1000
FACTS = (
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

logger = logging.getLogger("tunesmith.gateway")


class RequestContext:
    """`status` ends as 499 if the client left and as 502 if a stream broke."""

    __slots__ = (
        "begun",
        "completion_tokens",
        "end_of_answer",
        "first_byte_seconds",
        "key_id",
        "leave",
        "ledger",
        "method",
        "model",
        "path",
        "prompt_tokens",
        "request_id",
        "seconds",
        "status",
    )

    def __init__(self, method: str, path: str, given_id: bytes | None, ledger: "RequestRecorder") -> None:
        self.begun = time.perf_counter()
        self.method = method
        self.path = path
        self.request_id = request_id(given_id)
        self.ledger = ledger
        self.model = NO_ROUTE
        self.key_id = ""
        self.leave: Callable[[], None] | None = None
        self.status = CLIENT_CLOSED_REQUEST
        self.first_byte_seconds: float | None = None
        self.end_of_answer = b""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def started(self, status: int) -> None:
        """Note that the answer begins."""
        self.status = status
        self.first_byte_seconds = time.perf_counter() - self.begun

    def ended(self) -> None:
        """Have the request counted and logged, and give its place among the key's requests back."""
        leave, self.leave = self.leave, None
        if leave is not None:
            leave()
        self.seconds = time.perf_counter() - self.begun
        self.ledger.note(self)

    def count(self) -> None:
        """Count the request, with the tokens that the end of the answer tells of."""
        if self.end_of_answer:
            self._read_usage(self.end_of_answer)
        REQUEST_METRICS.of(self.model).observe(
            self.status, self.seconds, self.first_byte_seconds, self.prompt_tokens, self.completion_tokens
        )

    def _read_usage(self, end: bytes) -> None:
        """A quote inside a JSON string is escaped, so no text can be taken for the engine's own count."""
        place = end.rfind(b'"usage"')
        if place < 0 or not USAGE.match(end, place):
            return
        prompt = PROMPT_TOKENS.search(end, place)
        completion = COMPLETION_TOKENS.search(end, place)
        self.prompt_tokens = int(prompt[1]) if prompt else None
        self.completion_tokens = int(completion[1]) if completion else None


class RequestRecorder:
    """Requests that have ended, to be counted and logged together a few times a second.

    One by one, between two requests, the same work takes about twice the time: its code and its data have
    left the processor's caches by then.
    """

    def __init__(self, log: Callable[[list[RequestContext]], None]) -> None:
        self.log = log
        self.pending: list[RequestContext] = []
        self.timer: asyncio.TimerHandle | None = None

    def note(self, exchange: RequestContext) -> None:
        """Take a request that has ended."""
        self.pending.append(exchange)
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self.settle)
        elif len(self.pending) >= MOST_PENDING:
            self.settle()

    def settle(self) -> None:
        """Count and log what is pending."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        pending, self.pending = self.pending, []
        for exchange in pending:
            exchange.count()
        if pending:
            self.log(pending)


def request_id(given: bytes | None) -> str:
    """The client's id for the request if it is one that may stand in a log, else a new one."""
    if given is not None and SAFE_REQUEST_ID.fullmatch(given):
        return given.decode()
    # An id has to be unique, not secret, and the kernel's random numbers cost more than the rest of a line.
    return f"req_{random.getrandbits(96):024x}"


def log_lines(exchanges: list[RequestContext]) -> None:
    """Log requests through the process's own logging."""
    for exchange in exchanges:
        facts = {name: getattr(exchange, name) for name in FACTS}
        told = exchange.method, exchange.path, exchange.model, exchange.status
        logger.info("%s %s %s %s", *told, extra=facts)
