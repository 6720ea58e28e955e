"""Requests as they come in from a client, checked while they come.

What two servers might read differently is refused: lengths given twice or in two ways, other transfer codings
than chunked, versions other than 1.0 and 1.1, folded headers and bare newlines.
"""

from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

import httptools

from serving.gateway.gateway import MAX_BODY_BYTES, GatewayRequest, body_too_large
from serving.http.errors import HeadersTooLarge, MalformedRequest

MOST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 100
SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type"})


class Listener(Protocol):
    """Who is told of requests."""

    def request_begins(self) -> None: ...

    def body_follows(self, headers: dict[bytes, bytes], large: bool) -> None: ...

    def request_is_here(self, request: GatewayRequest, keep_alive: bool, may_chunk: bool) -> None: ...


class RequestParser:
    """The requests of one connection; limits count bytes as they come, not by reads."""

    def __init__(self, listener: Listener, address: str) -> None:
        self.listener = listener
        self.address = address
        self.parser = httptools.HttpRequestParser(self)
        self.begun = False
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.header_count = 0
        self.head_bytes = self.fed_bytes = 0
        self.in_head = True
        self.body: bytes | bytearray = b""

    def feed(self, data: bytes) -> Exception | None:
        """Take what has come; gives what is wrong with it."""
        unfinished = self.in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as fault:
            assert isinstance(fault.__context__, Exception)
            return fault.__context__
        except httptools.HttpParserError as fault:
            return MalformedRequest(f"This is no valid request: {fault}.")
        if unfinished and self.in_head:
            self.fed_bytes += len(data)
            if self.fed_bytes > MOST_HEAD_BYTES:
                return head_too_large()
        return None

    # What httptools calls.

    def on_message_begin(self) -> None:
        self.begun = True
        self.listener.request_begins()

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
        # What follows a chunked body says nothing of the request.
        if self.in_head:
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
        chunked = b"transfer-encoding" in headers
        if chunked:
            self._check_coding(version)
        length = int(headers.get(b"content-length", b"0"))
        if length > MAX_BODY_BYTES:
            raise body_too_large()
        if chunked or length:
            self.listener.body_follows(headers, chunked or length > MOST_HEAD_BYTES)

    def _check_coding(self, version: str) -> None:
        if b"content-length" in self.headers or version == "1.0":
            raise MalformedRequest("Give a body's length as Content-Length or by chunks, never both.")
        if self.headers[b"transfer-encoding"].lower() != b"chunked":
            raise MalformedRequest("The only transfer coding that is known here is chunked.")

    def on_body(self, part: bytes) -> None:
        if not self.body:
            self.body = part
            return
        if isinstance(self.body, bytes):
            # A list of parts would take many times the memory of a body that comes in tiny chunks.
            self.body = bytearray(self.body)
        self.body += part
        if len(self.body) > MAX_BODY_BYTES:
            raise body_too_large()

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        request = GatewayRequest(method, path_of(self.url), self.headers, self.address, bytes(self.body))
        may_chunk = self.parser.get_http_version() == "1.1"
        # After feed_data has returned this would be False for every request.
        keep_alive = may_chunk and self.parser.should_keep_alive()
        self.begun = False
        self._reset()
        self.listener.request_is_here(request, keep_alive, may_chunk)


@lru_cache(maxsize=1024)
def path_of(url: bytes) -> str:
    """The path of a request's target, which clients of proxies send as a whole URL."""
    path = url.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path) if "%" in path else path


def head_too_large() -> HeadersTooLarge:
    """What a client with too many headers is told."""
    return HeadersTooLarge(f"The request's line and headers are over {MOST_HEAD_BYTES} bytes.")
