"""The connections to the engines: a pool of our own over httptools.

The client is the dear part of a gateway in Python: an answer goes to a sink by plain calls, without a task
or a queue for each request.
"""

import asyncio
import ssl
import time
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 5.0
# A long prompt on a slow engine may take minutes to its first token.
SILENCE_SECONDS = 600.0
# Less than the engines' own patience with an idle connection helps nobody, since a stale one costs a retry.
KEPT_SECONDS = 15.0
SWEEP_SECONDS = 1.0
MOST_HEAD_BYTES = 64 * 1024


class UpstreamError(Exception):
    """What kept an answer from coming whole."""


class UpstreamUnreachable(UpstreamError):
    """No connection, or one that was closed before the answer began."""


class UpstreamStale(UpstreamUnreachable):
    """A kept connection that the engine had closed before this request reached it."""


class UpstreamBroken(UpstreamError):
    """The answer broke off, or was no HTTP."""


class UpstreamTimeout(UpstreamError):
    """Nothing came for SILENCE_SECONDS."""


class Sink(Protocol):
    """Who gets an answer: `head` once, `data` for each read, then `end` with the rest, or `fail` instead.

    What it raises itself it is told by `crash`.
    """

    upstream: "UpstreamConnection | None"

    def head(self, status: int, headers: dict[bytes, bytes]) -> None: ...

    def data(self, chunk: bytes) -> None: ...

    def end(self, chunk: bytes) -> None: ...

    def fail(self, fault: UpstreamError) -> None: ...

    def crash(self, fault: Exception) -> None: ...


class ConnectionPool:
    """Kept-alive connections by the address of the engine; made inside the running event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.idle: dict[str, deque[UpstreamConnection]] = {}
        self.all: set[UpstreamConnection] = set()
        self.sweeping = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def request(self, base_url: str, request: bytes, sink: Sink, fresh: bool = False) -> None:
        """Send a whole request, on a kept connection unless a fresh one is asked for."""
        idle = self.idle.get(base_url)
        while idle and not fresh:
            connection = idle.pop()
            if not connection.closed:
                connection.send(request, sink)
                return
        connection = UpstreamConnection(self, base_url, request, sink)
        self.all.add(connection)

    def keep(self, connection: "UpstreamConnection") -> None:
        """Take back a connection whose answer is complete."""
        idle = self.idle.get(connection.base_url)
        if idle is None:
            idle = self.idle[connection.base_url] = deque()
        idle.append(connection)

    def forget(self, connection: "UpstreamConnection") -> None:
        """Let go of a connection that is closed."""
        self.all.discard(connection)
        idle = self.idle.get(connection.base_url)
        if idle is not None and connection in idle:
            idle.remove(connection)
        if not idle:
            self.idle.pop(connection.base_url, None)

    async def aclose(self) -> None:
        """Close all connections."""
        self.sweeping.cancel()
        opening = [connection.opening for connection in self.all]
        for connection in list(self.all):
            connection.abort()
        await asyncio.gather(*opening, return_exceptions=True)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.all):
            connection.look(now)
        self.sweeping = self.loop.call_later(SWEEP_SECONDS, self._sweep)


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine, which carries one request at a time."""

    def __init__(self, pool: ConnectionPool, base_url: str, request: bytes, sink: Sink) -> None:
        self.pool = pool
        self.base_url = base_url
        self.transport: asyncio.Transport | None = None
        self.closed = self.reused = self.paused = False
        self.begin(request, sink)
        self.opening = pool.loop.create_task(self._open())

    def begin(self, request: bytes, sink: Sink) -> None:
        self.request: bytes = request
        self.sink: Sink | None = sink
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.head_bytes = 0
        self.status = 0
        self.told = self.complete = self.spoilt = False
        self.heard_at = time.monotonic()
        sink.upstream = self

    def send(self, request: bytes, sink: Sink) -> None:
        """Send another request."""
        assert self.transport is not None
        self.begin(request, sink)
        self.transport.write(request)

    def abort(self) -> None:
        """Close at once, which makes the engine stop; the sink hears nothing more."""
        self.sink = None
        self.closed = True
        if self.transport is None:
            self.opening.cancel()
            self.pool.forget(self)
        else:
            self.transport.abort()

    def pause(self) -> None:
        """Read no more until `resume`."""
        if self.transport is not None and not self.paused and not self.closed:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and self.paused and not self.closed:
            self.paused = False
            self.heard_at = time.monotonic()
            self.transport.resume_reading()

    def look(self, now: float) -> None:
        """Close what has been silent, or idle, for too long."""
        seconds = now - self.heard_at
        if self.sink is None:
            if seconds > KEPT_SECONDS:
                self.abort()
        elif seconds > SILENCE_SECONDS and not self.paused:
            self._fail(UpstreamTimeout(f"nothing came for {SILENCE_SECONDS:.0f} s"))

    async def _open(self) -> None:
        address = urlsplit(self.base_url)
        host = address.hostname or ""
        context = ssl.create_default_context() if address.scheme == "https" else None
        port = address.port or (443 if context else 80)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.pool.loop.create_connection(lambda: self, host, port, ssl=context)
        except OSError as fault:
            self.pool.forget(self)
            self._fail(UpstreamUnreachable(str(fault)))

    def _fail(self, fault: UpstreamError) -> None:
        sink = self.sink
        self.abort()
        if sink is not None:
            sink.fail(fault)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)
        if self.sink is None:
            self.transport.abort()
        else:
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        sink = self.sink
        if sink is None:
            self.abort()
            return
        self.heard_at = time.monotonic()
        if not self.status:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as fault:
            self._fail(UpstreamBroken(f"the engine's answer is not HTTP: {fault}"))
            return
        if not self.status:
            if self.head_bytes > MOST_HEAD_BYTES:
                self._fail(UpstreamBroken(f"the answer's headers are over {MOST_HEAD_BYTES} bytes"))
            return
        try:
            self._tell(sink)
        except Exception as fault:
            # The edge: nobody else would answer the client.
            sink.crash(fault)

    def _tell(self, sink: Sink) -> None:
        """Hand on what one read has brought; a complete answer frees the connection first."""
        if self.complete:
            self._release()
        if not self.told:
            self.told = True
            sink.head(self.status, self.headers)
        parts = self.parts
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self.complete:
            sink.end(chunk)
        elif chunk:
            sink.data(chunk)

    def _release(self) -> None:
        assert self.transport is not None
        self.sink = None
        self.reused = True
        self.resume()
        if self.keep_alive and not self.spoilt and not self.transport.get_write_buffer_size():
            self.pool.keep(self)
        else:
            self.closed = True
            self.transport.close()

    def connection_lost(self, fault: Exception | None) -> None:
        self.closed = True
        self.pool.forget(self)
        sink, self.sink = self.sink, None
        if sink is None:
            return
        if self.told and not self._framed():
            sink.end(b"")
        elif self.told:
            sink.fail(UpstreamBroken(str(fault or "the engine closed the connection")))
        elif self.reused and not self.head_bytes:
            sink.fail(UpstreamStale("a kept connection was closed"))
        else:
            sink.fail(UpstreamUnreachable(str(fault or "the engine closed the connection")))

    def _framed(self) -> bool:
        """Whether the headers say where the answer ends; else its end is that of the connection."""
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    # What httptools calls.

    def on_message_begin(self) -> None:
        self.spoilt = self.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:
            self.headers = {}
        elif not self.complete:
            self.status = status

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            # After feed_data has returned this is False for every answer.
            self.keep_alive = self.parser.should_keep_alive()
