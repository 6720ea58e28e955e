"""Many slow streams from one process: the time to the first token, and the delay of each chunk.

    python -m tests.benchmarks.serving.gateway_streams PORT STREAMS SECONDS

Prints as JSON the median milliseconds from the request to the first token, and from the engine's write of a
chunk to its arrival, and the number of chunks. Both sides read the same clock.
"""

import asyncio
import json
import re
import statistics
import sys
import time

import uvloop

SENT = re.compile(rb'"T(\d{19}) "')
WARM_UP_SECONDS = 1.5


class Measurements:
    """The measurements of all streams, and the request that each of them sends."""

    def __init__(self) -> None:
        text = {"role": "user", "content": "GAP=20000;CHUNKS=50;"}
        body = json.dumps({"model": "m", "messages": [text], "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-x\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.counted_from = time.monotonic_ns() + int(WARM_UP_SECONDS * 1e9)
        self.first_tokens: list[int] = []
        self.delays: list[int] = []


class StreamClient(asyncio.Protocol):
    """A client that starts its next stream when the previous one has ended."""

    def __init__(self, streams: Measurements) -> None:
        self.streams = streams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send_request()

    def send_request(self) -> None:
        self.sent_at: int | None = time.monotonic_ns()
        self.tail = b""
        self.transport.write(self.streams.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.tail + data
        sent = [int(found) for found in SENT.findall(data)]
        self.tail = b"" if sent or data.endswith(b"\n") else data[-400:]
        if sent and now > self.streams.counted_from:
            if self.sent_at is not None:
                self.streams.first_tokens.append(now - self.sent_at)
            self.streams.delays += [now - each for each in sent]
        if sent:
            self.sent_at = None
        if data.endswith(b"0\r\n\r\n"):
            self.send_request()


async def main(port: int, count: int, seconds: float) -> None:
    """Run the streams; their starts are spread over a second, since simultaneous ones delay each other."""
    streams = Measurements()
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.create_connection(lambda: StreamClient(streams), "127.0.0.1", port)
        await asyncio.sleep(1 / count)
    await asyncio.sleep(seconds)
    print(
        json.dumps(
            {
                "first_token": statistics.median(streams.first_tokens) / 1e6,
                "delay": statistics.median(streams.delays) / 1e6,
                "chunks": len(streams.delays),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
