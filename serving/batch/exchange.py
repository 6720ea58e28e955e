"""One request to an engine, over the connections of the gateway's client."""

import asyncio
from dataclasses import dataclass

from serving.gateway.connection_pool import ConnectionPool, UpstreamConnection, UpstreamError, UpstreamStale
from serving.gateway.upstreams import build_request_head

# The journal holds a response as one line, and several wait in memory.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024


class ResponseOversized(Exception):
    """The engine sends more than MAX_RESPONSE_BYTES."""


class ConnectionFailed(Exception):
    """The engine does not respond; `sent` is whether it may have received the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


@dataclass(frozen=True)
class EngineResponse:
    """A complete response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def post(
    pool: ConnectionPool, base_url: str, path: str, request_id: str, body: bytes
) -> EngineResponse:
    """Send a request, and return its response.

    Raises:
        ConnectionFailed: The engine is unreachable, or ended the connection.
        ResponseOversized: The response is too large.
    """
    head = build_request_head(base_url, path)
    request = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        head,
        request_id.encode(),
        len(body),
        body,
    )
    try:
        return await _send(pool, base_url, request, fresh=False)
    except UpstreamStale:
        return await _send(pool, base_url, request, fresh=True)


class _Handler:
    """Collects a response."""

    upstream: UpstreamConnection | None = None

    def __init__(self) -> None:
        self.result: asyncio.Future[EngineResponse] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._size = self._status = 0

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._status, self._headers = status, headers

    def on_data(self, chunk: bytes) -> None:
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size > MAX_RESPONSE_BYTES and self.upstream is not None:
            self.upstream.abort()
            self.on_exception(ResponseOversized())

    def on_end(self, chunk: bytes) -> None:
        self._parts.append(chunk)
        self.upstream = None
        if not self.result.done():
            self.result.set_result(EngineResponse(self._status, self._headers, b"".join(self._parts)))

    def on_error(self, error: UpstreamError) -> None:
        self.on_exception(error)

    def on_exception(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


async def _send(pool: ConnectionPool, base_url: str, request: bytes, *, fresh: bool) -> EngineResponse:
    handler = _Handler()
    pool.request(base_url, request, handler, fresh)
    connection = handler.upstream
    try:
        return await handler.result
    except UpstreamStale:
        if not fresh:
            raise
        raise ConnectionFailed("the engine closed the connection", sent=True) from None
    except UpstreamError as error:
        sent = connection is not None and connection.transport is not None
        raise ConnectionFailed(str(error) or type(error).__name__, sent=sent) from error
    except asyncio.CancelledError:
        if handler.upstream is not None:
            handler.upstream.abort()
        raise
