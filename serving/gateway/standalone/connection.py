"""A client's connection to the standalone gateway, driven by callbacks only."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from serving.gateway.downstream import (
    ClientIdentity,
    Downstream,
    GatewayRequest,
    Headers,
    InFlightRequest,
    client_identity,
)
from serving.gateway.gateway import Gateway
from serving.gateway.standalone.request_parser import GatewayRequestParser
from serving.http.errors import RequestTimeout, TooManyConnections
from serving.http.limits import (
    BODY_TIMEOUT_SECONDS,
    HEAD_TIMEOUT_SECONDS,
    KEEP_ALIVE_SECONDS,
    LINGER_SECONDS,
    WRITE_TIMEOUT_SECONDS,
    max_connections,
)

PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, PHRASES.get(status, b"-")) for status in range(200, 1000)
}


class GatewayServerState:
    """State that all connections of a process share.

    `handle` handles a request of any path, and returns a task if the request must wait.
    """

    def __init__(
        self,
        gateway: Gateway,
        handle: Callable[[GatewayRequest, Downstream], asyncio.Task[None] | None],
    ) -> None:
        self.gateway = gateway
        self.handle = handle
        self.connections: set[ClientConnection] = set()
        self.max_connections = max_connections()
        self.draining = False
        self.date_line = b""


class ClientConnection(asyncio.Protocol):
    """One connection: requests are handled one at a time, and pipelined ones wait."""

    chunked: bool
    keep_alive: bool

    def __init__(self, server: GatewayServerState) -> None:
        self.server = server
        self.in_flight: InFlightRequest | None = None
        self.task: asyncio.Task[None] | None = None
        self.waiting: deque[tuple[GatewayRequest, bool, bool] | Exception] = deque()
        self.busy = self.head_only = self.rejected = False
        self.reading_paused = False
        self.origin_headers: Headers = []
        self.deadline = time.monotonic() + HEAD_TIMEOUT_SECONDS

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.address: str = (transport.get_extra_info("peername") or ("",))[0]
        self.parser = GatewayRequestParser(self, self.address)
        self.server.connections.add(self)
        if len(self.server.connections) > self.server.max_connections:
            self._reject(TooManyConnections())

    def data_received(self, data: bytes) -> None:
        if self.rejected:
            return
        error = self.parser.feed(data)
        if error is not None:
            self._reject(error)

    def eof_received(self) -> None:
        """Close the connection: a client that closes its side cannot be distinguished from one that left."""

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        self.waiting.clear()
        if self.task is not None:
            self.task.cancel()
        if self.in_flight is not None:
            self.in_flight.cancel()

    def pause_writing(self) -> None:
        self.deadline = time.monotonic() + WRITE_TIMEOUT_SECONDS
        if self.in_flight is not None:
            self.in_flight.pause()

    def resume_writing(self) -> None:
        self.deadline = math.inf if self.busy else time.monotonic() + KEEP_ALIVE_SECONDS
        if self.in_flight is not None:
            self.in_flight.resume()

    # Called by the parser.

    def on_request_start(self) -> None:
        if not self.busy:
            self.deadline = time.monotonic() + HEAD_TIMEOUT_SECONDS

    def on_body_start(self, headers: dict[bytes, bytes], large: bool) -> None:
        if self.busy:
            return
        self.deadline = time.monotonic() + BODY_TIMEOUT_SECONDS
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if large:
            self._authorize(headers)

    def on_request(self, request: GatewayRequest, keep_alive: bool, can_chunk: bool) -> None:
        if self.rejected:
            return
        if self.busy:
            self.waiting.append((request, keep_alive, can_chunk))
            self._pause_reading()
        else:
            self._start_request(request, keep_alive, can_chunk)

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        """Read a large body only after the client is authorized, so that strangers cannot fill the memory."""
        identity = client_identity(headers, self.address)
        if self.server.gateway.cached_client(identity) is None:
            self._pause_reading()
            authorizing = self._authorize_and_resume(identity, headers)
            self.task = asyncio.get_running_loop().create_task(authorizing)

    async def _authorize_and_resume(self, identity: ClientIdentity, headers: dict[bytes, bytes]) -> None:
        try:
            await self.server.gateway.authorize(identity)
        except Exception as error:
            # If one read brought the whole request, it was started already and is rejected there.
            if self.parser.headers is headers:
                self._reject(error)
        self._resume_reading()

    # Called by the gateway.

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        head = self._head(status, headers) + b"content-length: %d\r\n\r\n" % len(body)
        self.transport.write(head if self.head_only else head + body)
        self._next_request()

    def start(self, status: int, headers: Headers, chunk: bytes) -> None:
        if self.chunked:
            rest = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(chunk), chunk)
        else:
            self.keep_alive = False
            rest = b"\r\n" + chunk
        self.transport.write(self._head(status, headers) + rest)

    def write(self, chunk: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.chunked else chunk)

    def finish(self, chunk: bytes) -> None:
        if self.chunked:
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk) if chunk else b"0\r\n\r\n"
        self.transport.write(chunk)
        self._next_request()

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [STATUS_LINES[status], self.server.date_line]
        for name, value in (*headers, *self.origin_headers):
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        return b"".join(lines)

    # From one request to the next.

    def _start_request(self, request: GatewayRequest, keep_alive: bool, chunked: bool) -> None:
        self.busy = True
        self.deadline = math.inf
        self.keep_alive = keep_alive and not self.server.draining
        self.chunked = chunked
        self.head_only = request.method == "HEAD"
        origins = self.server.gateway.origins
        self.origin_headers = origins.response_headers(request.headers) if origins.allowed else []
        self.task = self.server.handle(request, self)

    def _next_request(self) -> None:
        self.busy = False
        self.in_flight = self.task = None
        if not self.keep_alive:
            self._close()
        elif self.waiting:
            self.busy = True
            asyncio.get_running_loop().call_soon(self._start_waiting_request)
        else:
            seconds = HEAD_TIMEOUT_SECONDS if self.parser.in_request else KEEP_ALIVE_SECONDS
            self.deadline = time.monotonic() + seconds
            self._resume_reading()

    def _start_waiting_request(self) -> None:
        self.busy = False
        if not self.waiting:
            return
        item = self.waiting.popleft()
        if isinstance(item, Exception):
            self._reject(item)
        else:
            self._start_request(*item)

    # The end of the connection.

    def check_timeout(self, now: float) -> None:
        """Close the connection if the client has exceeded its deadline."""
        if now < self.deadline:
            return
        if self.busy or self.rejected or not self.parser.in_request:
            self.transport.abort()
        else:
            self._reject(RequestTimeout("The request did not arrive completely in time."))

    def drain(self) -> None:
        """Close the connection after the response in progress."""
        self.keep_alive = False
        if not self.busy:
            self._close()

    def _reject(self, error: Exception) -> None:
        """Respond with an error and stop reading; a response in progress is completed first."""
        if self.busy:
            self.waiting.append(error)
            self._pause_reading()
            return
        self.keep_alive = self.head_only = False
        self.origin_headers = []
        self.parser.in_request = True
        self.server.gateway.open_context("-", "-", {}).fail(error, self)

    def _close(self) -> None:
        """Close after the written data was sent; a client that still sends would lose it to a reset."""
        self.rejected = True
        if self.transport.is_closing():
            return
        if self.parser.in_request:
            self.deadline = time.monotonic() + LINGER_SECONDS
            self.transport.write_eof()
            self._resume_reading()
        else:
            self.deadline = time.monotonic() + WRITE_TIMEOUT_SECONDS
            self.transport.close()

    def _pause_reading(self) -> None:
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.transport.resume_reading()
