"""uvicorn's HTTP protocol with our limits of headers, of connections and of the time that a client may take.

uvicorn alone accepts headers of any size, at a cost that grows with its square. It waits for the rest of a
request without a limit, loses the body of a request with `Upgrade: h2c`, and writes the refusal of a
malformed request into the response before it.
"""

import logging
import math
import time
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.http import metrics
from serving.http.errors import ApiError, InternalError, RequestTimeout, TooManyConnections
from serving.http.limits import (
    BODY_TIMEOUT_SECONDS,
    HEAD_TIMEOUT_SECONDS,
    LINGER_SECONDS,
    MIN_BODY_BYTES_PER_SECOND,
    WRITE_TIMEOUT_SECONDS,
    max_connections,
)
from serving.http.request_parser import RequestParser

MAX_CONNECTIONS = max_connections()

logger = logging.getLogger("app.requests")


class HttpProtocol(HttpToolsProtocol):
    """One connection. `check_timeout` must be called about once a second."""

    parser: "_Parser"  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)
        self.deadline = time.monotonic() + HEAD_TIMEOUT_SECONDS
        self.write_deadline = math.inf
        # Set once the connection accepts no more requests; responses in progress are completed first.
        self.rejection: Exception | None = None
        self.lingers = False
        self.running: RequestResponseCycle | None = None

    # Called by the event loop.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._reject(TooManyConnections())

    def connection_lost(self, exc: Exception | None) -> None:
        if self.running is not None:
            _disconnect(self.running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.rejection is None and (error := self.parser.feed(data)) is not None:
            self._reject(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_deadline = time.monotonic() + WRITE_TIMEOUT_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_deadline = math.inf

    def check_timeout(self, now: float) -> None:
        """End the connection if the client has exceeded a deadline."""
        if now >= self.write_deadline:
            self.transport.abort()
        elif now >= self.deadline:
            if self.flow.read_paused:
                # The service reads more slowly than the client sends, for example because of its disk.
                self.deadline = now + BODY_TIMEOUT_SECONDS
            elif self.lingers or not self.parser.in_request or self._responded():
                self.transport.abort()
            else:
                self._reject(RequestTimeout("The request did not arrive completely in time."))

    # Called by the parser.

    def on_start(self) -> None:
        self._unset_keepalive_if_required()
        self.deadline = time.monotonic() + HEAD_TIMEOUT_SECONDS

    def on_head(self) -> None:
        self.deadline = time.monotonic() + BODY_TIMEOUT_SECONDS
        self.on_message_begin()
        self.on_url(self.parser.url)
        for name, value in self.parser.header_list:
            self.on_header(name, value)
        self.on_headers_complete()

    def on_part(self, part: bytes) -> None:
        self.deadline += len(part) / MIN_BODY_BYTES_PER_SECOND
        self.on_body(part)

    def on_end(self) -> None:
        self.deadline = math.inf
        self.on_message_complete()

    # Called by uvicorn.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        if self.rejection is not None:
            self._unset_keepalive_if_required()
            self._respond(self.rejection)
        elif self.parser.in_request:
            # The client may send the rest of the body, which is ignored, but not for long.
            self.deadline = time.monotonic() + LINGER_SECONDS

    # The end of the connection.

    def _responded(self) -> bool:
        """Return True if the response to the request that is arriving has begun."""
        return not self.parser.in_head and bool(self.cycle.response_started)

    def _reject(self, error: Exception) -> None:
        """Respond with an error after the responses in progress, and stop reading."""
        self.rejection = error
        in_body = self.parser.in_request and not self.parser.in_head
        if in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            # The request has not been started, because another one is before it.
            self.pipeline.popleft()
            assert self.running is not None
            self.cycle = self.pipeline[0][0] if self.pipeline else self.running
        elif in_body and not self.cycle.response_complete:
            started = self.cycle.response_started
            _disconnect(self.cycle)
            if started:
                self.transport.close()
            else:
                self._respond(error)
            return
        if self.cycle is None or self.cycle.response_complete:
            self._respond(error)

    def _respond(self, error: Exception) -> None:
        """Write the error, and close after the client has had time to read it."""
        if not isinstance(error, ApiError):
            logger.error("a request could not be parsed", exc_info=error)
            error = InternalError("The service failed to read this request. Its log has the details.")
        client = self.client[0] if self.client else None
        logger.info(
            "- - %s %s", error.status, error.message, extra={"status": error.status, "client": client}
        )
        metrics.REQUEST_COUNT.labels("-", "none", str(error.status)).inc()
        body = error.body()
        headers = [*self.server_state.default_headers, *error.headers(), (b"connection", b"close")]
        lines = [b"HTTP/1.1 %d %b\r\n" % (error.status, HTTPStatus(error.status).phrase.encode())]
        lines += [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(lines), len(body), body))
        self.lingers = True
        self.deadline = time.monotonic() + LINGER_SECONDS
        if self.transport.is_closing():
            return
        # Closing at once would reset the connection of a client that still sends, and lose the response.
        self.transport.write_eof()
        self.flow.resume_reading()


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Make the application see a client that has disconnected."""
    if not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()


class _Parser(RequestParser):
    """The parser in the place of uvicorn's: it passes a request on once its head is complete and checked."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.protocol = protocol
        super().__init__()

    def on_start(self) -> None:
        self.protocol.on_start()

    def on_head(self) -> None:
        self.protocol.on_head()

    def on_part(self, part: bytes) -> None:
        self.protocol.on_part(part)

    def on_end(self) -> None:
        self.protocol.on_end()

    # Read by uvicorn's protocol.

    def get_http_version(self) -> str:
        return str(self.parser.get_http_version())

    def get_method(self) -> bytes:
        return bytes(self.parser.get_method())

    def should_keep_alive(self) -> bool:
        return bool(self.parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        """Return False: an upgrade is ignored."""
        return False
