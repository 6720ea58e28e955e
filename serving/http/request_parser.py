"""Parsing of requests, with checks while they arrive, for every server of ours that uses httptools.

Requests that two servers might read differently are rejected (request smuggling): repeated or contradictory
body lengths, transfer codings other than chunked, versions other than 1.0 and 1.1, folded headers and bare
newlines. An upgrade to another protocol is ignored, as HTTP allows: the clients that ask for HTTP/2 in this
way send a normal request.
"""

from collections.abc import Iterable

import httptools

from serving.http.errors import ApiError, HeadersTooLarge, MalformedRequest, UrlTooLong
from serving.http.limits import MAX_HEAD_BYTES, MAX_HEADERS, MAX_LINE_BYTES

UNREPEATABLE_HEADERS = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"origin",
        b"sec-fetch-site",
        b"transfer-encoding",
    }
)
# A chunk of one byte is sent as six; the rest of a chunk's line, its extensions, is read by nobody.
MAX_FRAMED_BYTES_PER_BYTE = 8
UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})
UPGRADE_OPTIONS = frozenset({b"upgrade", b"http2-settings"})

HeaderList = list[tuple[bytes, bytes]]


class RequestParser:
    """Parser of the requests of one connection; limits count bytes as they arrive, not per read.

    A subclass gets `on_start`, then `on_head`, then `on_part` for each part of the body, then `on_end`, and
    may raise ApiError in each of them.
    """

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.in_request = False
        self._reset()

    def on_start(self) -> None: ...

    def on_head(self) -> None: ...

    def on_part(self, part: bytes) -> None: ...

    def on_end(self) -> None: ...

    def _reset(self) -> None:
        self.url = b""
        self.header_list: HeaderList = []
        self.headers: dict[bytes, bytes] = {}
        self.head_bytes = self.fed_bytes = 0
        self.body_bytes = self.framed_bytes = 0
        self.in_head = True
        self.upgrades = False

    def feed(self, data: bytes) -> Exception | None:
        """Parse the data and return the error, if there is one."""
        message = self.header_list
        if not self.in_head:
            self.framed_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            assert isinstance(cause, Exception)
            return _malformed(cause) if isinstance(cause, httptools.HttpParserError) else cause
        except httptools.HttpParserError as error:
            return _malformed(error)
        # A read that also ends an earlier request does not count: most of its bytes are that request's.
        if self.in_head and self.header_list is message:
            self.fed_bytes += len(data)
            if self.fed_bytes > MAX_HEAD_BYTES:
                return _head_too_large()
        if self.framed_bytes > MAX_HEAD_BYTES + MAX_FRAMED_BYTES_PER_BYTE * self.body_bytes:
            return MalformedRequest("The chunks of the body are mostly extensions. Leave them out.")
        return None

    def _feed(self, data: bytes) -> None:
        # A loop, since one read can bring thousands of requests that ask for an upgrade.
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as error:
                data = data[error.args[0] :]
            else:
                return
            # httptools stops after the head and would leave the body out, so the head is parsed again.
            head = _head_without_upgrade(self._request_line(), self.header_list)
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(head)

    def _request_line(self) -> bytes:
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)

    # Called by httptools.

    def on_message_begin(self) -> None:
        self.in_request = True
        if self.upgrades:
            # This head is parsed for the second time.
            self._reset()
        else:
            self.on_start()

    def on_url(self, part: bytes) -> None:
        self.url += part
        self.head_bytes += len(part)
        if self.head_bytes > MAX_LINE_BYTES:
            raise UrlTooLong(f"The request line is larger than {MAX_LINE_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value) + 4
        if self.head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()
        if len(self.header_list) >= MAX_HEADERS:
            raise HeadersTooLarge(f"The request has more than {MAX_HEADERS} headers.")
        # After the head come the trailers of a chunked body, which count but are otherwise ignored.
        self.header_list.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.headers = dict(self.header_list)
        if len(self.headers) != len(self.header_list):
            self._check_repeated()
        self._check_head()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise MalformedRequest("The method CONNECT is for proxies.")
            self.upgrades = True
            return
        self.on_head()
        self.in_head = False

    def on_body(self, part: bytes) -> None:
        self.body_bytes += len(part)
        self.on_part(part)

    def on_message_complete(self) -> None:
        if self.upgrades:
            return
        self.in_request = False
        self.on_end()
        self._reset()

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise MalformedRequest(f"The request uses HTTP version {version}. Use 1.1.")
        if not self.url.isascii():
            raise MalformedRequest("The URL has characters outside ASCII. Encode them with %.")
        if b"host" not in self.headers and version == "1.1":
            raise MalformedRequest("The header Host is missing.")
        coding = self.headers.get(b"transfer-encoding")
        if coding is None:
            return
        if b"content-length" in self.headers or version == "1.0":
            raise MalformedRequest(
                "The request has both Content-Length and Transfer-Encoding, or chunks in HTTP 1.0. "
                "Send one of the two headers."
            )
        if coding.lower() != b"chunked":
            raise MalformedRequest("The transfer coding is not supported. Use chunked.")

    def _check_repeated(self) -> None:
        seen = set()
        for name, _ in self.header_list:
            if name in seen and name in UNREPEATABLE_HEADERS:
                raise MalformedRequest(f"The header {name.decode('latin-1')} is repeated. Send it once.")
            seen.add(name)


def _head_without_upgrade(line: bytes, headers: HeaderList) -> bytes:
    """Return the head of a request without the headers that ask for another protocol."""
    lines = [line]
    for name, value in headers:
        if name == b"connection":
            value = b", ".join(_options_without_upgrade(value))
        if name not in UPGRADE_HEADERS and (value or name != b"connection"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join([*lines, b"\r\n"])


def _options_without_upgrade(connection: bytes) -> Iterable[bytes]:
    options = (option.strip() for option in connection.split(b","))
    return (option for option in options if option.lower() not in UPGRADE_OPTIONS)


def _malformed(error: Exception) -> ApiError:
    return MalformedRequest(f"The request is not valid HTTP: {error}.")


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes.")
