"""Parsing of a client's requests, with checks while they arrive.

Requests that two servers might read differently are rejected (request smuggling): repeated or contradictory
body lengths, transfer codings other than chunked, versions other than 1.0 and 1.1, folded headers and bare
newlines.
"""

from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

import httptools

from serving.gateway.downstream import MAX_BODY_BYTES, GatewayRequest
from serving.http.errors import BodyTooLarge, HeadersTooLarge, MalformedRequest

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
UNREPEATABLE_HEADERS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type"}
)


class RequestListener(Protocol):
    """The receiver of parsed requests."""

    def on_request_start(self) -> None: ...

    def on_body_start(self, headers: dict[bytes, bytes], large: bool) -> None: ...

    def on_request(self, request: GatewayRequest, keep_alive: bool, can_chunk: bool) -> None: ...


class RequestParser:
    """Parser of the requests of one connection; limits count bytes as they arrive, not per read."""

    def __init__(self, listener: RequestListener, address: str) -> None:
        self.listener = listener
        self.address = address
        self.parser = httptools.HttpRequestParser(self)
        self.in_request = False
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.header_count = 0
        self.head_bytes = self.fed_bytes = 0
        self.in_head = True
        self.body: bytes | bytearray = b""

    def feed(self, data: bytes) -> Exception | None:
        """Parse the data and return the error, if there is one."""
        started_in_head = self.in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            assert isinstance(error.__context__, Exception)
            return error.__context__
        except httptools.HttpParserError as error:
            return MalformedRequest(f"The request is not valid HTTP: {error}.")
        if started_in_head and self.in_head:
            self.fed_bytes += len(data)
            if self.fed_bytes > MAX_HEAD_BYTES:
                return _head_too_large()
        return None

    # Called by httptools.

    def on_message_begin(self) -> None:
        self.in_request = True
        self.listener.on_request_start()

    def on_url(self, part: bytes) -> None:
        self.url += part
        self.head_bytes += len(part)
        if self.head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self.headers
        self.header_count += 1
        self.head_bytes += len(name) + len(value) + 4
        if self.head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()
        if self.header_count > MAX_HEADERS:
            raise HeadersTooLarge(f"The request has more than {MAX_HEADERS} headers.")
        if name in headers and name in UNREPEATABLE_HEADERS:
            raise MalformedRequest(f"The header {name.decode('latin-1')} is repeated. Send it once.")
        # Trailers after a chunked body are ignored.
        if self.in_head:
            headers[name] = value

    def on_headers_complete(self) -> None:
        self.in_head = False
        headers = self.headers
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise MalformedRequest(f"The request uses HTTP version {version}. Use 1.1.")
        if self.parser.should_upgrade():
            raise MalformedRequest("The gateway supports no protocol upgrade. Remove the header Upgrade.")
        if b"host" not in headers and version == "1.1":
            raise MalformedRequest("The header Host is missing.")
        chunked = b"transfer-encoding" in headers
        if chunked:
            self._check_transfer_coding(version)
        length = int(headers.get(b"content-length", b"0"))
        if length > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)
        if chunked or length:
            self.listener.on_body_start(headers, chunked or length > MAX_HEAD_BYTES)

    def _check_transfer_coding(self, version: str) -> None:
        if b"content-length" in self.headers or version == "1.0":
            raise MalformedRequest(
                "The request has both Content-Length and Transfer-Encoding, or chunks in HTTP 1.0. "
                "Send one of the two headers."
            )
        if self.headers[b"transfer-encoding"].lower() != b"chunked":
            raise MalformedRequest("The transfer coding is not supported. Use chunked.")

    def on_body(self, part: bytes) -> None:
        if not self.body:
            self.body = part
            return
        if isinstance(self.body, bytes):
            # A list of parts would take many times the memory of a body that arrives in tiny chunks.
            self.body = bytearray(self.body)
        self.body += part
        if len(self.body) > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        request = GatewayRequest(method, parse_path(self.url), self.headers, self.address, bytes(self.body))
        can_chunk = self.parser.get_http_version() == "1.1"
        # After feed_data has returned, should_keep_alive() would be False for every request.
        keep_alive = can_chunk and self.parser.should_keep_alive()
        self.in_request = False
        self._reset()
        self.listener.on_request(request, keep_alive, can_chunk)


@lru_cache(maxsize=1024)
def parse_path(url: bytes) -> str:
    """Return the path of a request target; clients of forward proxies send an absolute URL."""
    path = url.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path) if "%" in path else path


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes.")
