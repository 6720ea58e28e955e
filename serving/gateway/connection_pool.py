"""The HTTP client of the gateway: kept-alive connections to the engines, on httptools.

The client is the expensive part of a gateway in Python. So a response is delivered to its handler by plain
calls, without a task or a queue for each request.
"""

import asyncio
import ssl
import time
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_SECONDS = 5.0
# A long prompt on a slow engine can take minutes to its first token.
READ_TIMEOUT_SECONDS = 600.0
# Longer than the idle timeout of some engines, which is harmless: a stale connection only costs a retry.
IDLE_SECONDS = 15.0
SWEEP_SECONDS = 1.0
MAX_HEAD_BYTES = 64 * 1024


class UpstreamError(Exception):
    """A response that did not arrive completely."""


class UpstreamUnreachable(UpstreamError):
    """The connection failed, or was closed before the response started."""


class UpstreamStale(UpstreamUnreachable):
    """The engine had closed a kept-alive connection before this request reached it."""


class UpstreamBroken(UpstreamError):
    """The response ended early or was not valid HTTP."""


class UpstreamTimeout(UpstreamError):
    """The engine sent nothing during the time that the pool allows."""


class ResponseHandler(Protocol):
    """The receiver of a response.

    It gets `on_head` once, `on_data` for each read, then `on_end` with the last data, or `on_error` instead.
    An exception that one of these raises is passed to `on_exception`.
    """

    upstream: "UpstreamConnection | None"

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None: ...

    def on_data(self, chunk: bytes) -> None: ...

    def on_end(self, chunk: bytes) -> None: ...

    def on_error(self, error: UpstreamError) -> None: ...

    def on_exception(self, error: Exception) -> None: ...


class ConnectionPool:
    """Kept-alive connections by the engine's address; must be created inside the running event loop."""

    def __init__(self, read_timeout_seconds: float = READ_TIMEOUT_SECONDS) -> None:
        self.loop = asyncio.get_running_loop()
        self.read_timeout_seconds = read_timeout_seconds
        self.idle: dict[str, deque[UpstreamConnection]] = {}
        self.all: set[UpstreamConnection] = set()
        self.sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def request(self, base_url: str, request: bytes, handler: ResponseHandler, fresh: bool = False) -> None:
        """Send a complete request, on a kept-alive connection unless `fresh` asks for a new one."""
        idle = self.idle.get(base_url)
        while idle and not fresh:
            connection = idle.pop()
            if not connection.closed:
                connection.send(request, handler)
                return
        connection = UpstreamConnection(self, base_url, request, handler)
        self.all.add(connection)

    def put_back(self, connection: "UpstreamConnection") -> None:
        """Keep a connection whose response is complete for the next request."""
        idle = self.idle.get(connection.base_url)
        if idle is None:
            idle = self.idle[connection.base_url] = deque()
        idle.append(connection)

    def remove(self, connection: "UpstreamConnection") -> None:
        """Remove a closed connection."""
        self.all.discard(connection)
        idle = self.idle.get(connection.base_url)
        if idle is not None and connection in idle:
            idle.remove(connection)
        if not idle:
            self.idle.pop(connection.base_url, None)

    async def aclose(self) -> None:
        """Close all connections."""
        self.sweep_timer.cancel()
        connecting = [connection.connect_task for connection in self.all]
        for connection in list(self.all):
            connection.abort()
        await asyncio.gather(*connecting, return_exceptions=True)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.all):
            connection.check_timeouts(now)
        self.sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine. It carries one request at a time."""

    def __init__(self, pool: ConnectionPool, base_url: str, request: bytes, handler: ResponseHandler) -> None:
        self.pool = pool
        self.base_url = base_url
        self.transport: asyncio.Transport | None = None
        self.closed = self.reused = self.paused = False
        self._start(request, handler)
        self.connect_task = pool.loop.create_task(self._connect())

    def _start(self, request: bytes, handler: ResponseHandler) -> None:
        self.request: bytes = request
        self.handler: ResponseHandler | None = handler
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.head_bytes = 0
        self.status = 0
        self.head_delivered = self.complete = self.extra_response = False
        self.last_read_at = time.monotonic()
        handler.upstream = self

    def send(self, request: bytes, handler: ResponseHandler) -> None:
        """Send another request on the open connection."""
        assert self.transport is not None
        self._start(request, handler)
        self.transport.write(request)

    def abort(self) -> None:
        """Close at once, which makes the engine stop; the handler gets no further call."""
        self.handler = None
        self.closed = True
        if self.transport is None:
            self.connect_task.cancel()
            self.pool.remove(self)
        else:
            self.transport.abort()

    def pause(self) -> None:
        """Stop reading until `resume`."""
        if self.transport is not None and not self.paused and not self.closed:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Continue reading."""
        if self.transport is not None and self.paused and not self.closed:
            self.paused = False
            self.last_read_at = time.monotonic()
            self.transport.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Close the connection if it was silent, or idle, for too long."""
        seconds = now - self.last_read_at
        if self.handler is None:
            if seconds > IDLE_SECONDS:
                self.abort()
        elif seconds > (limit := self.pool.read_timeout_seconds) and not self.paused:
            self._fail(UpstreamTimeout(f"the engine sent nothing for {limit:.0f} s"))

    async def _connect(self) -> None:
        address = urlsplit(self.base_url)
        host = address.hostname or ""
        context = ssl.create_default_context() if address.scheme == "https" else None
        port = address.port or (443 if context else 80)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self.pool.loop.create_connection(lambda: self, host, port, ssl=context)
        except OSError as error:
            self.pool.remove(self)
            self._fail(UpstreamUnreachable(str(error)))

    def _fail(self, error: UpstreamError) -> None:
        handler = self.handler
        self.abort()
        if handler is not None:
            handler.on_error(error)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)
        if self.handler is None:
            self.transport.abort()
        else:
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        handler = self.handler
        if handler is None:
            self.abort()
            return
        self.last_read_at = time.monotonic()
        if not self.status:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(UpstreamBroken(f"the engine's response is not valid HTTP: {error}"))
            return
        if not self.status:
            if self.head_bytes > MAX_HEAD_BYTES:
                self._fail(UpstreamBroken(f"the response headers are larger than {MAX_HEAD_BYTES} bytes"))
            return
        try:
            self._deliver(handler)
        except Exception as error:
            # asyncio would only log the exception, and the client would wait for its response.
            handler.on_exception(error)

    def _deliver(self, handler: ResponseHandler) -> None:
        """Pass on the data of one read; a complete response frees the connection first."""
        if self.complete:
            self._release()
        if not self.head_delivered:
            self.head_delivered = True
            handler.on_head(self.status, self.headers)
        parts = self.parts
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self.complete:
            handler.on_end(chunk)
        elif chunk:
            handler.on_data(chunk)

    def _release(self) -> None:
        assert self.transport is not None
        self.handler = None
        self.reused = True
        self.resume()
        if self.keep_alive and not self.extra_response and not self.transport.get_write_buffer_size():
            self.pool.put_back(self)
        else:
            self.closed = True
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.pool.remove(self)
        handler, self.handler = self.handler, None
        if handler is None:
            return
        if self.head_delivered and not self._has_length():
            handler.on_end(b"")
        elif self.head_delivered:
            handler.on_error(UpstreamBroken(str(error or "the engine closed the connection")))
        elif self.reused and not self.head_bytes:
            handler.on_error(UpstreamStale("the engine had closed the kept-alive connection"))
        else:
            handler.on_error(UpstreamUnreachable(str(error or "the engine closed the connection")))

    def _has_length(self) -> bool:
        """Return True if the headers define where the response ends, False if the connection's end does."""
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    # Called by httptools.

    def on_message_begin(self) -> None:
        self.extra_response = self.complete

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
            # After feed_data has returned, should_keep_alive() is False for every response.
            self.keep_alive = self.parser.should_keep_alive()
