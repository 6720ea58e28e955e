"""One client's connection to the gateway that stands alone: HTTP/1.1 over httptools, by callbacks alone.

What two servers might read differently is refused: lengths given twice or in two ways, other transfer codings
than chunked, versions other than 1.0 and 1.1, folded headers and bare newlines.
"""

import asyncio
import math
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import httptools

from serving.gateway.errors import (
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
)
from serving.gateway.gateway import MOST_BODY_BYTES, Request, Sender, body_too_large, sender
from serving.gateway.relay import Headers, Job

if TYPE_CHECKING:
    from serving.gateway.server import Server

MOST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 100
# A larger body is not read before its sender is known.
SMALL_BODY_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75.0
# How long a client may leave its answer unread, and how long one that was refused may go on sending.
UNREAD_SECONDS = 60.0
LINGER_SECONDS = 2.0
SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type"})
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, PHRASES.get(status, b"-")) for status in range(200, 1000)
}


class ClientConnection(asyncio.Protocol):
    """Requests come in one after another; those that come early wait until the answer before them is sent."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.job: Job | None = None
        self.task: asyncio.Task[None] | None = None
        self.waiting: deque[tuple[Request, bool, bool] | Exception] = deque()
        self.busy = self.receiving = self.heads = self.refused = False
        self.reading_paused = False
        self.deadline = time.monotonic() + HEAD_SECONDS
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.header_count = 0
        self.head_bytes = self.fed_bytes = 0
        self.in_head = True
        self.parts: list[bytes] = []
        self.body_bytes = 0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.address: str = (transport.get_extra_info("peername") or ("",))[0]
        self.parser = httptools.HttpRequestParser(self)
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        unfinished = self.in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as fault:
            assert isinstance(fault.__context__, Exception)
            self._refuse(fault.__context__)
        except httptools.HttpParserError as fault:
            self._refuse(MalformedRequest(f"This is no valid request: {fault}."))
        else:
            if unfinished and self.in_head:
                self.fed_bytes += len(data)
                if self.fed_bytes > MOST_HEAD_BYTES:
                    self._refuse(head_too_large())

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

    # What httptools calls.

    def on_message_begin(self) -> None:
        self.receiving = True
        if not self.busy:
            self.deadline = time.monotonic() + HEAD_SECONDS

    def on_url(self, part: bytes) -> None:
        self.url += part
        self.head_bytes += len(part)
        if self.head_bytes > MOST_HEAD_BYTES:
            raise head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self.headers
        self.header_count += 1
        self.head_bytes += len(name) + len(value) + 4
        if self.head_bytes > MOST_HEAD_BYTES:
            raise head_too_large()
        if self.header_count > MOST_HEADERS:
            raise HeadersTooLarge(f"There are more than {MOST_HEADERS} headers.")
        if name in headers and name in SINGLE:
            raise MalformedRequest(f"The header {name.decode('latin-1')} stands there twice.")
        headers[name] = value

    def on_headers_complete(self) -> None:
        self.in_head = False
        headers = self.headers
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise MalformedRequest(f"The gateway speaks version 1.1 of HTTP, not {version}.")
        if self.parser.should_upgrade():
            raise MalformedRequest("No other protocol is spoken here; leave the header Upgrade out.")
        if b"host" not in headers and version == "1.1":
            raise MalformedRequest("The header Host is missing.")
        if b"transfer-encoding" in headers:
            self._check_coding(version)
        self._expect_body(headers)

    def _check_coding(self, version: str) -> None:
        if b"content-length" in self.headers or version == "1.0":
            raise MalformedRequest("Give a body's length as Content-Length or by chunks, never both.")
        if self.headers[b"transfer-encoding"].lower() != b"chunked":
            raise MalformedRequest("The only transfer coding that is known here is chunked.")

    def _expect_body(self, headers: dict[bytes, bytes]) -> None:
        chunked = b"transfer-encoding" in headers
        length = int(headers.get(b"content-length", b"0"))
        if length > MOST_BODY_BYTES:
            raise body_too_large()
        if not chunked and not length:
            return
        if not self.busy:
            self.deadline = time.monotonic() + BODY_SECONDS
            if headers.get(b"expect", b"").lower() == b"100-continue":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if chunked or length > SMALL_BODY_BYTES:
                self._admit()

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)
        self.body_bytes += len(part)
        if self.body_bytes > MOST_BODY_BYTES:
            raise body_too_large()

    def on_message_complete(self) -> None:
        parts = self.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        method = self.parser.get_method().decode()
        request = Request(method, path_of(self.url), self.headers, self.address, body)
        one_one = self.parser.get_http_version() == "1.1"
        # After feed_data has returned this would be False for every request.
        keep_alive = one_one and self.parser.should_keep_alive()
        self.receiving = False
        self._reset()
        if self.refused:
            return
        if self.busy:
            self.waiting.append((request, keep_alive, one_one))
            self._pause_reading()
        else:
            self._start(request, keep_alive, one_one)

    def _admit(self) -> None:
        """Read on only when the sender is known: before, nobody may fill our memory."""
        gateway = self.server.gateway
        who = sender(self.headers, self.address)
        if gateway.known(who) is None:
            self._pause_reading()
            self.task = asyncio.get_running_loop().create_task(self._admitted(who, self.headers))

    async def _admitted(self, who: Sender, headers: dict[bytes, bytes]) -> None:
        try:
            await self.server.gateway.admit(who)
        except Exception as fault:
            # If one read has brought the whole request, it has been begun by now and is refused there.
            if self.headers is headers:
                self._refuse(fault)
        self._resume_reading()

    # From a request to its answer.

    def _start(self, request: Request, keep_alive: bool, chunked: bool) -> None:
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
            self.deadline = time.monotonic() + (HEAD_SECONDS if self.receiving else KEEP_ALIVE_SECONDS)
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
        if self.busy or self.refused or not self.receiving:
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
        self.receiving = True
        self.server.gateway.refuse(self.server.gateway.exchange("-", "-", {}), fault, self)

    def _close(self) -> None:
        """Close after what was written has gone out; a client that still sends would lose it to a reset."""
        self.refused = True
        if self.transport.is_closing():
            return
        if self.receiving:
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


def path_of(url: bytes) -> str:
    """The path of a request's target, which clients of proxies send as a whole URL."""
    path = url.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path) if "%" in path else path


def head_too_large() -> HeadersTooLarge:
    """What a client with too many headers is told."""
    return HeadersTooLarge(f"The request's line and headers are over {MOST_HEAD_BYTES} bytes.")
