"""The access log of the gateway that stands alone: JSON lines, many in one write."""

import json
import os
import time
from functools import lru_cache

from serving.gateway.request_context import RequestContext


class AccessLog:
    """Writes to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __call__(self, exchanges: list[RequestContext]) -> None:
        """Write a line for each request."""
        epoch = time.time() - time.perf_counter()
        lines = "".join([line(exchange, epoch) for exchange in exchanges]).encode()
        while lines:
            lines = lines[os.write(self.descriptor, lines) :]


def line(exchange: RequestContext, epoch: float) -> str:
    """One request; a client may have put anything into path and model."""
    first = exchange.first_byte_seconds
    prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
    return (
        f'{{"time":{epoch + exchange.begun:.3f},"request_id":"{exchange.request_id}",'
        f'"method":"{exchange.method}","path":{quoted(exchange.path)},"model":{quoted(exchange.model)},'
        f'"key_id":"{exchange.key_id}","status":{exchange.status},'
        f'"first_byte_seconds":{"null" if first is None else f"{first:.6f}"},'
        f'"seconds":{exchange.seconds:.6f},"prompt_tokens":{"null" if prompt is None else prompt},'
        f'"completion_tokens":{"null" if completion is None else completion}}}\n'
    )


@lru_cache(maxsize=1024)
def quoted(text: str) -> str:
    """The text as JSON."""
    return json.dumps(text)
