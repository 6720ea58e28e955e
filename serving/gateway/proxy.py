"""One generation request on its way to the engine and back, driven by what the engine's connection brings."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from serving.gateway.caller import Downstream, Headers
from serving.gateway.renaming import names_in_answers, renamed
from serving.gateway.request_body import RequestBody
from serving.gateway.request_context import CLIENT_CLOSED_REQUEST, RequestContext
from serving.gateway.routes import Route, Target
from serving.gateway.stream_end import LineBuffer, StreamEnd, stream_end_for
from serving.gateway.upstream import (
    UpstreamConnection,
    UpstreamError,
    UpstreamStale,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from serving.http.errors import (
    EngineCircuitOpen,
    EngineDisconnected,
    EngineTimeout,
    EngineUnavailable,
    ResponseTooLarge,
    UnknownUrl,
)

if TYPE_CHECKING:
    from serving.gateway.gateway import Gateway

PASSED_HEADERS = (b"content-type", b"retry-after")
UNBUFFERED = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
NOT_FOUND, NOT_KNOWN_HOW = 404, 501
# The usage of a plain answer stands at its end; of a long one no more is kept for the count.
USAGE_WITHIN = 4096
MOST_ANSWER_BYTES = 256 * 1024 * 1024

logger = logging.getLogger("tunesmith.gateway")


class ProxiedRequest:
    """Passes an answer through as it comes.

    A second attempt is made only if the first broke before its first byte. A plain answer is held until it is
    complete, so that a break still becomes a proper error; a stream is passed in whole lines, and one that
    does not reach its end gets an error event instead. One that begins with the engine's error has not begun.
    """

    upstream: UpstreamConnection | None = None
    task: asyncio.Task[None] | None = None
    ending: StreamEnd
    attempts = status = held_bytes = 0
    ended = streamed = begun = False
    last = before = b""

    def __init__(
        self,
        gateway: "Gateway",
        exchange: RequestContext,
        route: Route,
        plan: RequestBody,
        further_headers: bytes,
        client: Downstream,
    ) -> None:
        self.gateway = gateway
        self.exchange = exchange
        self.route = route
        self.plan = plan
        self.further_headers = further_headers
        self.client = client
        self.parts: list[bytes] = []
        self.drops_usage = plan.ask_for_usage(exchange.path)
        client.job = self

    def start(self) -> None:
        """Send the request to a target of the route, or refuse it if all are left alone."""
        breakers = self.gateway.breakers
        try:
            self._send_to(self._choose(breakers.avoided() if breakers.circuits else ()))
        except EngineUnavailable as fault:
            self._refuse(fault)

    def cancel(self) -> None:
        """The client has left: give the request up, which makes the engine stop."""
        if not self.ended:
            self.exchange.status = CLIENT_CLOSED_REQUEST
            self._end()

    def pause(self) -> None:
        """The client reads more slowly than the engine writes."""
        if self.upstream is not None:
            self.upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self.upstream is not None:
            self.upstream.resume()

    def _choose(self, avoided: "list[Target] | tuple[()]") -> Target:
        target = self.route.choose(avoided)
        if target is None:
            raise EngineCircuitOpen(self.route.name, self.gateway.breakers.retry_after_seconds())
        return target

    def _send_to(self, target: Target, fresh: bool = False) -> None:
        self.target = target
        if not target.base_url:
            self._later(self._wake(target))
            return
        self.attempts += 1
        self.names = names_in_answers(target.upstream_model, self.route.name)
        self.gateway.asked(target)
        body = self.plan.body(target.upstream_model)
        head = self.gateway.head(target.base_url, self.exchange.path) + self.further_headers
        request = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        self.gateway.pool().request(target.base_url, request, self, fresh)

    async def _wake(self, target: Target) -> None:
        self._send_to(await self.gateway.routes.wake(target))

    async def _again(self, stale: bool) -> None:
        """Look the route up and try once more, with another target if this one cannot be reached."""
        routes = self.gateway.routes
        if not routes.fresh():
            await routes.refresh()
        route = routes.find(self.route.name)
        if route is None:
            raise EngineUnavailable(f"The deployment {self.route.name!r} has just been stopped.")
        self.route = route
        self.status, self.streamed = 0, False
        avoided = self.gateway.breakers.avoided()
        other = None if stale else route.choose([*avoided, self.target])
        self._send_to(other or self._choose(avoided), fresh=True)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self.task = asyncio.get_running_loop().create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as fault:
            self._refuse(fault)

    def _refuse(self, fault: Exception) -> None:
        self.ended = True
        self.gateway.refuse(self.exchange, fault, self.client)

    # What the engine's connection calls.

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self.streamed = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if self.streamed:
            self.lines = LineBuffer()
            self.ending = stream_end_for(self.exchange.path, self.drops_usage)

    def data(self, chunk: bytes) -> None:
        if not self.streamed:
            self._hold(chunk)
            return
        lines = self._whole_lines(chunk)
        if self.ending.failed and not self.begun:
            self._let_go()
            self.lines = LineBuffer()
            self.fail(UpstreamUnreachable("the stream begins with an error"))
        elif lines:
            self._pass(lines)

    def end(self, chunk: bytes) -> None:
        self.upstream = None
        if not self.streamed:
            self._pass_whole(chunk)
            return
        lines = self._whole_lines(chunk) if chunk else b""
        if not self.begun and (self.ending.failed or not lines):
            self.fail(UpstreamUnreachable("the stream ended before it began"))
        elif self.ending.done:
            self._finish(lines)
        else:
            self._break(lines)

    def fail(self, fault: UpstreamError) -> None:
        self.upstream = None
        if self.begun:
            # Of what has come to its end the client has all; only the connection was not closed in order.
            self._finish(b"") if self.ending.done else self._break(b"")
            return
        if not isinstance(fault, UpstreamStale):
            self.gateway.breakers.failed(self.target)
        if isinstance(fault, UpstreamTimeout):
            self._refuse(EngineTimeout(self.route.name))
        elif self.parts or (self.streamed and self.lines.rest):
            self._refuse(EngineDisconnected(self.route.name))
        elif self.attempts < 2:
            self._later(self._again(isinstance(fault, UpstreamStale)))
        else:
            gone = f"The engine of {self.route.name!r} cannot be reached; it may be starting again."
            self._refuse(EngineUnavailable(f"{gone} Try again soon."))

    def crash(self, fault: Exception) -> None:
        """What the engine sent met a bug of ours: the client must not wait for ever."""
        if self.ended:
            return
        self._let_go()
        if self.begun:
            logger.error("%s broke off", self.exchange.request_id, exc_info=fault)
            self._break(b"")
        else:
            self._refuse(fault)

    def _hold(self, chunk: bytes) -> None:
        self.parts.append(chunk)
        self.held_bytes += len(chunk)
        if self.held_bytes > MOST_ANSWER_BYTES and self.upstream is not None:
            self._let_go()
            self._refuse(ResponseTooLarge(MOST_ANSWER_BYTES))

    def _whole_lines(self, chunk: bytes) -> bytes:
        """What may be passed: half a line before an error event would hide the event from the client."""
        lines = self.lines.take(chunk)
        return renamed(self.ending.look(lines), self.names) if lines else lines

    def _pass(self, lines: bytes) -> None:
        # The usage stands in the last event before [DONE].
        self.before, self.last = self.last, lines
        if self.begun:
            self.client.send(lines)
            return
        self.begun = True
        self.exchange.started(self.status)
        self.client.begin(self.status, self._answer_headers() + UNBUFFERED, lines)

    def _finish(self, lines: bytes) -> None:
        if not self.begun:
            self._pass(lines)
            lines = b""
        self.exchange.end_of_answer = self.ending.usage or self.before + self.last + lines
        self._note_status()
        self._end()
        self.client.finish(lines)

    def _break(self, lines: bytes) -> None:
        if not self.begun:
            self._pass(lines)
            lines = b""
        self.gateway.breakers.failed(self.target)
        error = EngineDisconnected(self.route.name)
        self.exchange.status = error.status
        self._end()
        self.client.finish(lines + self.ending.broken(error, lines or self.last))

    def _pass_whole(self, chunk: bytes) -> None:
        if self.parts:
            self.parts.append(chunk)
            chunk = b"".join(self.parts)
        if self.status == NOT_FOUND and b'"error"' not in chunk:
            # So a web framework speaks of a path that it does not have.
            path = self.exchange.path
            self._refuse(UnknownUrl(f"The engine of {self.route.name!r} does not serve {path}."))
            return
        chunk = renamed(chunk, self.names)
        self.exchange.started(self.status)
        self.exchange.end_of_answer = chunk[-USAGE_WITHIN:]
        self._note_status()
        self._end()
        self.client.whole(self.status, self._answer_headers(), chunk)

    def _note_status(self) -> None:
        breakers = self.gateway.breakers
        told = self.streamed and self.ending.failed
        # One that does not know how, or is busy and says until when, is well.
        if told or (
            self.status >= 500 and self.status != NOT_KNOWN_HOW and b"retry-after" not in self.headers
        ):
            breakers.failed(self.target)
        elif breakers.circuits:
            breakers.succeeded(self.target)

    def _end(self) -> None:
        """Let go of the engine, count and log; the client may begin its next request from here on."""
        self.ended = True
        if self.task is not None:
            self.task.cancel()
        self._let_go()
        self.exchange.ended()

    def _let_go(self) -> None:
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None

    def _answer_headers(self) -> Headers:
        """The engine's headers that mean something to the client, and the request's id."""
        passed = [(name, self.headers[name]) for name in PASSED_HEADERS if name in self.headers]
        passed.append((b"x-request-id", self.exchange.request_id.encode()))
        return passed
