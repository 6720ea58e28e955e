"""The requests of one connection to the standalone gateway, each complete with its body."""

from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

from serving.gateway.downstream import GatewayRequest
from serving.http.errors import BodyTooLarge
from serving.http.limits import MAX_BODY_BYTES, MAX_HEAD_BYTES
from serving.http.request_parser import RequestParser


class RequestListener(Protocol):
    """The receiver of parsed requests."""

    def on_request_start(self) -> None: ...

    def on_body_start(self, headers: dict[bytes, bytes], large: bool) -> None: ...

    def on_request(self, request: GatewayRequest, keep_alive: bool, can_chunk: bool) -> None: ...


class GatewayRequestParser(RequestParser):
    """Parser that buffers each body, up to the limit."""

    def __init__(self, listener: RequestListener, address: str) -> None:
        self.listener = listener
        self.address = address
        self.body: bytes | bytearray = b""
        super().__init__()

    def on_start(self) -> None:
        self.body = b""
        self.listener.on_request_start()

    def on_head(self) -> None:
        chunked = b"transfer-encoding" in self.headers
        length = int(self.headers.get(b"content-length", b"0"))
        if length > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)
        if chunked or length:
            self.listener.on_body_start(self.headers, chunked or length > MAX_HEAD_BYTES)

    def on_part(self, part: bytes) -> None:
        if not self.body:
            self.body = part
            return
        if isinstance(self.body, bytes):
            # A list of parts would take many times the memory of a body that arrives in tiny chunks.
            self.body = bytearray(self.body)
        self.body += part
        if len(self.body) > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)

    def on_end(self) -> None:
        method = self.parser.get_method().decode()
        request = GatewayRequest(method, parse_path(self.url), self.headers, self.address, bytes(self.body))
        can_chunk = self.parser.get_http_version() == "1.1"
        self.body = b""
        # After feed_data has returned, should_keep_alive() would be False for every request.
        keep_alive = can_chunk and self.parser.should_keep_alive()
        self.listener.on_request(request, keep_alive, can_chunk)


@lru_cache(maxsize=1024)
def parse_path(url: bytes) -> str:
    """Return the path of a request target; clients of forward proxies send an absolute URL."""
    path = url.partition(b"?")[0].decode("ascii")
    if not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path) if "%" in path else path
