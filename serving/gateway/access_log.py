"""The access log of the gateway that stands alone: JSON lines, written together a few times a second.

A write for each request, through the logging module, would cost as much as the rest of the gateway.
"""

import asyncio
import json
import os
import time
from functools import lru_cache

from serving.gateway.exchange import Exchange

FLUSH_SECONDS = 0.2
MOST_WAITING = 1000


class AccessLog:
    """Lines on their way to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lines: list[str] = []
        self.flushing: asyncio.TimerHandle | None = None

    def __call__(self, exchange: Exchange) -> None:
        """Take one line; a client may have put anything into path and model."""
        first = exchange.first_byte_seconds
        prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
        self.lines.append(
            f'{{"time":{time.time():.3f},"request_id":"{exchange.request_id}","method":"{exchange.method}",'
            f'"path":{quoted(exchange.path)},"model":{quoted(exchange.model)},"key_id":"{exchange.key_id}",'
            f'"status":{exchange.status},"first_byte_seconds":{"null" if first is None else f"{first:.6f}"},'
            f'"seconds":{exchange.seconds:.6f},"prompt_tokens":{"null" if prompt is None else prompt},'
            f'"completion_tokens":{"null" if completion is None else completion}}}\n'
        )
        if self.flushing is None:
            self.flushing = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(self.lines) > MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self.flushing is not None:
            self.flushing.cancel()
            self.flushing = None
        waiting = "".join(self.lines).encode()
        self.lines.clear()
        while waiting:
            waiting = waiting[os.write(self.descriptor, waiting) :]


@lru_cache(maxsize=1024)
def quoted(text: str) -> str:
    """The text as JSON."""
    plain = text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
    return f'"{text}"' if plain else json.dumps(text)
