"""One client's connection to the gateway that stands alone: requests in, answers out, by callbacks alone."""

import asyncio
import math
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from serving.gateway.caller import Headers, InFlightRequest
from serving.gateway.gateway import ClientIdentity, GatewayRequest, sender
from serving.gateway.standalone.incoming import RequestParser
from serving.http.errors import RequestTimeout

if TYPE_CHECKING:
    from serving.gateway.standalone.server import GatewayServer

HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75.0
# How long a client may leave its answer unread, and how long one that was refused may go on sending.
UNREAD_SECONDS = 60.0
LINGER_SECONDS = 2.0
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, PHRASES.get(status, b"-")) for status in range(200, 1000)
}


class ClientConnection(asyncio.Protocol):
    """Requests come in one after another; those that come early wait until the answer before them is sent."""

    def __init__(self, server: "GatewayServer") -> None:
        self.server = server
        self.job: InFlightRequest | None = None
        self.task: asyncio.Task[None] | None = None
        self.waiting: deque[tuple[GatewayRequest, bool, bool] | Exception] = deque()
        self.busy = self.heads = self.refused = False
        self.reading_paused = False
        self.deadline = time.monotonic() + HEAD_SECONDS

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.address: str = (transport.get_extra_info("peername") or ("",))[0]
        self.incoming = RequestParser(self, self.address)
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        fault = self.incoming.feed(data)
        if fault is not None:
            self._refuse(fault)

    def eof_received(self) -> None:
        """A client that has closed its side has left, for all that can be known; returning closes ours."""

    def connection_lost(self, fault: Exception | None) -> None:
        self.server.connections.discard(self)
        self.waiting.clear()
        if self.task is not None:
            self.task.cancel()
        if self.job is not None:
            self.job.cancel()

    def pause_writing(self) -> None:
        self.deadline = time.monotonic() + UNREAD_SECONDS
        if self.job is not None:
            self.job.pause()

    def resume_writing(self) -> None:
        self.deadline = math.inf if self.busy else time.monotonic() + KEEP_ALIVE_SECONDS
        if self.job is not None:
            self.job.resume()

    # What is told of requests.

    def request_begins(self) -> None:
        if not self.busy:
            self.deadline = time.monotonic() + HEAD_SECONDS

    def body_follows(self, headers: dict[bytes, bytes], large: bool) -> None:
        if self.busy:
            return
        self.deadline = time.monotonic() + BODY_SECONDS
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if large:
            self._admit(headers)

    def request_is_here(self, request: GatewayRequest, keep_alive: bool, may_chunk: bool) -> None:
        if self.refused:
            return
        if self.busy:
            self.waiting.append((request, keep_alive, may_chunk))
            self._pause_reading()
        else:
            self._start(request, keep_alive, may_chunk)

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        """Read on only when the sender is known: before, nobody may fill our memory."""
        who = sender(headers, self.address)
        if self.server.gateway.known(who) is None:
            self._pause_reading()
            self.task = asyncio.get_running_loop().create_task(self._admitted(who, headers))

    async def _admitted(self, who: ClientIdentity, headers: dict[bytes, bytes]) -> None:
        try:
            await self.server.gateway.admit(who)
        except Exception as fault:
            # If one read has brought the whole request, it has been begun by now and is refused there.
            if self.incoming.headers is headers:
                self._refuse(fault)
        self._resume_reading()

    # From a request to its answer.

    def _start(self, request: GatewayRequest, keep_alive: bool, chunked: bool) -> None:
        self.busy = True
        self.deadline = math.inf
        self.keep_alive = keep_alive and not self.server.draining
        self.chunked = chunked
        self.heads = request.method == "HEAD"
        self.task = self.server.handle(request, self)

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer, and go on with the next request."""
        head = self._head(status, headers) + b"content-length: %d\r\n\r\n" % len(body)
        self.transport.write(head if self.heads else head + body)
        self._next()

    def begin(self, status: int, headers: Headers, chunk: bytes) -> None:
        """Begin an answer whose end is not known."""
        if self.chunked:
            end = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(chunk), chunk)
        else:
            self.keep_alive = False
            end = b"\r\n" + chunk
        self.transport.write(self._head(status, headers) + end)

    def send(self, chunk: bytes) -> None:
        """One more part of it."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.chunked else chunk)

    def finish(self, chunk: bytes) -> None:
        """The last part, and the next request."""
        if self.chunked:
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk) if chunk else b"0\r\n\r\n"
        self.transport.write(chunk)
        self._next()

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [STATUS_LINES[status], self.server.date_line]
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        return b"".join(lines)

    def _next(self) -> None:
        self.busy = False
        self.job = self.task = None
        if not self.keep_alive:
            self._close()
        elif self.waiting:
            self.busy = True
            asyncio.get_running_loop().call_soon(self._start_waiting)
        else:
            self.deadline = time.monotonic() + (HEAD_SECONDS if self.incoming.begun else KEEP_ALIVE_SECONDS)
            self._resume_reading()

    def _start_waiting(self) -> None:
        self.busy = False
        if not self.waiting:
            return
        item = self.waiting.popleft()
        if isinstance(item, Exception):
            self._refuse(item)
        else:
            self._start(*item)

    # Ends.

    def look(self, now: float) -> None:
        """Close what has kept the gateway waiting for too long."""
        if now < self.deadline:
            return
        if self.busy or self.refused or not self.incoming.begun:
            self.transport.abort()
        else:
            self._refuse(RequestTimeout("The request did not come whole in time."))

    def drain(self) -> None:
        """End after the answer that is under way."""
        self.keep_alive = False
        if not self.busy:
            self._close()

    def _refuse(self, fault: Exception) -> None:
        """Answer with an error and hear no more; of an answer under way the client gets the end first."""
        if self.busy:
            self.waiting.append(fault)
            self._pause_reading()
            return
        self.keep_alive = self.heads = False
        self.incoming.begun = True
        self.server.gateway.refuse(self.server.gateway.exchange("-", "-", {}), fault, self)

    def _close(self) -> None:
        """Close after what was written has gone out; a client that still sends would lose it to a reset."""
        self.refused = True
        if self.transport.is_closing():
            return
        if self.incoming.begun:
            self.deadline = time.monotonic() + LINGER_SECONDS
            self.transport.write_eof()
            self._resume_reading()
        else:
            self.deadline = time.monotonic() + UNREAD_SECONDS
            self.transport.close()

    def _pause_reading(self) -> None:
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.transport.resume_reading()
