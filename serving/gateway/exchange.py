"""One request on its way through the gateway: what is counted and logged of it."""

import logging
import random
import re
import time
from collections.abc import Callable

from serving.gateway.metrics import COUNTS

# A model name comes from the client, and only names with a route may become labels.
NO_ROUTE = "none"
CLIENT_LEFT = 499
SAFE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
PROMPT_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
USAGE = re.compile(rb'"usage"\s*:\s*\{')

logger = logging.getLogger("tunesmith.gateway")


class Exchange:
    """`status` ends as 499 if the client left and as 502 if a stream broke."""

    __slots__ = (
        "begun",
        "completion_tokens",
        "first_byte_seconds",
        "key_id",
        "log",
        "method",
        "model",
        "path",
        "prompt_tokens",
        "request_id",
        "seconds",
        "status",
    )

    def __init__(
        self, method: str, path: str, given_id: bytes | None, log: "Callable[[Exchange], None]"
    ) -> None:
        self.begun = time.perf_counter()
        self.method = method
        self.path = path
        self.request_id = request_id(given_id)
        self.log = log
        self.model = NO_ROUTE
        self.key_id = ""
        self.status = CLIENT_LEFT
        self.first_byte_seconds: float | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def started(self, status: int) -> None:
        """Note that the answer begins."""
        self.status = status
        self.first_byte_seconds = time.perf_counter() - self.begun

    def usage(self, end_of_answer: bytes) -> None:
        """Take the counts of tokens from the end of an answer.

        A quote inside a JSON string is escaped, so that a text cannot be taken for the engine's own count.
        """
        place = end_of_answer.rfind(b'"usage"')
        if place < 0 or not USAGE.match(end_of_answer, place):
            return
        prompt = PROMPT_TOKENS.search(end_of_answer, place)
        completion = COMPLETION_TOKENS.search(end_of_answer, place)
        self.prompt_tokens = int(prompt[1]) if prompt else None
        self.completion_tokens = int(completion[1]) if completion else None

    def ended(self) -> None:
        """Count the request and log its line."""
        self.seconds = time.perf_counter() - self.begun
        COUNTS.of(self.model).observe(
            self.status, self.seconds, self.first_byte_seconds, self.prompt_tokens, self.completion_tokens
        )
        self.log(self)


def request_id(given: bytes | None) -> str:
    """The client's id for the request if it is one that may stand in a log, else a new one."""
    if given is not None and SAFE_REQUEST_ID.fullmatch(given):
        return given.decode()
    # An id has to be unique, not secret, and the kernel's random numbers cost more than the rest of a line.
    return f"req_{random.getrandbits(96):024x}"


def log_line(exchange: Exchange) -> None:
    """Log a request through the process's own logging."""
    facts = {name: getattr(exchange, name) for name in FACTS}
    logger.info("%s %s %s %s", exchange.method, exchange.path, exchange.model, exchange.status, extra=facts)


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
