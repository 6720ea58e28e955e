"""The proxy for one generation request, driven by callbacks of the engine's connection."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from serving.gateway.connection_pool import (
    READ_TIMEOUT_SECONDS,
    UpstreamConnection,
    UpstreamError,
    UpstreamStale,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from serving.gateway.downstream import Downstream, Headers
from serving.gateway.proxy.engine_errors import describe_engine_error
from serving.gateway.proxy.stream_end import LineBuffer, StreamEnd, stream_end_for
from serving.gateway.proxy.targets import RouteTargets
from serving.gateway.request_body import RequestBody, model_name_replacements, replace_model_name
from serving.gateway.request_context import CLIENT_CLOSED_REQUEST, RequestContext, find_usage
from serving.gateway.routes import Route, Target
from serving.gateway.upstreams import Upstreams
from serving.http.errors import (
    EngineDisconnected,
    EngineTimeout,
    EngineUnavailable,
    ResponseTooLarge,
)

FORWARDED_HEADERS = (b"content-type", b"retry-after", b"retry-after-ms")
UNBUFFERED_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
NOT_IMPLEMENTED = 501
USAGE_BYTES = 4096
# Of a prompt or a response, where the engine does not report its tokens.
BYTES_PER_TOKEN = 4
MAX_RESPONSE_BYTES = 256 * 1024 * 1024

logger = logging.getLogger("tunesmith.gateway")


class ProxiedRequest:
    """Forwards a request to an engine, and the response to the client as it arrives.

    A second attempt is made only if the first failed before its first byte. A response that is not streamed
    is buffered until it is complete, so that a failure can still become an error response. A stream is
    forwarded in whole lines. If it does not reach its end, the client gets an error event instead. A stream
    whose first event is an error counts as not started.
    """

    upstream: UpstreamConnection | None = None
    task: asyncio.Task[None] | None = None
    stream_end: StreamEnd
    attempts = status = buffered_bytes = sent_bytes = 0
    ended = streamed = started = False
    last_lines = previous_lines = b""

    def __init__(
        self,
        upstreams: Upstreams,
        context: RequestContext,
        route: Route,
        body: RequestBody,
        extra_headers: bytes,
        downstream: Downstream,
    ) -> None:
        self.upstreams = upstreams
        self.context = context
        self.body = body
        self.targets = RouteTargets(
            upstreams, context, route, bytes(body.fields.get("stream", b"")) == b"true"
        )
        self.extra_headers = extra_headers
        self.downstream = downstream
        self.parts: list[bytes] = []
        self.remove_usage = body.request_stream_usage(context.path)
        downstream.in_flight = self

    @property
    def route(self) -> Route:
        """The route of the request, looked up again for a second attempt."""
        return self.targets.route

    @property
    def target(self) -> Target:
        """The target of the current attempt."""
        return self.targets.current

    def start(self) -> None:
        """Send the request to a target of the route, or fail if all circuits are open."""
        try:
            self._send_to(self.targets.first())
        except EngineUnavailable as error:
            self._fail(error)

    def cancel(self) -> None:
        """Abort the request because the client disconnected, which makes the engine stop."""
        if not self.ended:
            self.context.status = CLIENT_CLOSED_REQUEST
            self._estimate_tokens()
            self._end()

    def pause(self) -> None:
        """Stop reading from the engine while the client reads too slowly."""
        if self.upstream is not None:
            self.upstream.pause()

    def resume(self) -> None:
        """Read from the engine again."""
        if self.upstream is not None:
            self.upstream.resume()

    def _send_to(self, target: Target, fresh: bool = False) -> None:
        self.targets.take(target)
        if not target.base_url:
            self._run_in_task(self._wake(target))
            return
        self.attempts += 1
        self.replacements = model_name_replacements(target.upstream_model, self.route.name)
        body = self.body.encode(target.upstream_model)
        self.sent_bytes = len(body)
        self.upstreams.send(target, self.context.path, self.extra_headers, body, self, fresh)

    async def _wake(self, target: Target) -> None:
        self._send_to(await self.upstreams.routes.wake(target))

    async def _retry(self, stale: bool) -> None:
        """Try once more, with another target unless the connection was only stale."""
        target = await self.targets.next(stale)
        self.status, self.streamed = 0, False
        self._send_to(target, fresh=True)

    def _run_in_task(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._fail(error)

        self.task = asyncio.get_running_loop().create_task(run())

    def _fail(self, error: Exception) -> None:
        self.ended = True
        self.context.fail(error, self.downstream)

    # Called by the engine's connection.

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self.streamed = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if self.streamed:
            self.line_buffer = LineBuffer()
            self.stream_end = stream_end_for(self.context.path, self.remove_usage)

    def on_data(self, chunk: bytes) -> None:
        if not self.streamed:
            self._buffer(chunk)
            return
        lines = self._take_lines(chunk)
        if self.stream_end.failed and not self.started:
            self._abort_upstream()
            self.line_buffer = LineBuffer()
            self.on_error(UpstreamUnreachable("the stream starts with an error"))
        elif lines:
            self._forward(lines)

    def on_end(self, chunk: bytes) -> None:
        self.upstream = None
        if not self.streamed:
            self._respond(chunk)
            return
        lines = self._take_lines(chunk) if chunk else b""
        if not self.started and (self.stream_end.failed or not lines):
            self.on_error(UpstreamUnreachable("the stream ended before its first event"))
        elif self.stream_end.done:
            self._finish_stream(lines)
        else:
            self._break_stream(lines)

    def on_error(self, error: UpstreamError) -> None:
        self.upstream = None
        if self.started:
            # After [DONE] the client has the whole stream, and a lost connection changes nothing.
            self._finish_stream(b"") if self.stream_end.done else self._break_stream(b"")
            return
        if not isinstance(error, UpstreamStale):
            self.targets.record(succeeded=False)
        if isinstance(error, UpstreamTimeout):
            self._fail(EngineTimeout(self.route.name, READ_TIMEOUT_SECONDS))
        elif self.parts or (self.streamed and self.line_buffer.remainder):
            self._fail(EngineDisconnected(self.route.name))
        elif self.attempts < 2:
            self._run_in_task(self._retry(isinstance(error, UpstreamStale)))
        else:
            name = self.route.name
            message = f"The engine of {name!r} is unreachable; it may be restarting. Try again soon."
            self._fail(EngineUnavailable(message))

    def on_exception(self, error: Exception) -> None:
        """End the response after a bug in the gateway, so that the client does not wait forever."""
        if self.ended:
            return
        self._abort_upstream()
        if self.started:
            logger.error("%s failed in the middle of its stream", self.context.request_id, exc_info=error)
            self._break_stream(b"")
        else:
            self._fail(error)

    def _buffer(self, chunk: bytes) -> None:
        self.parts.append(chunk)
        self.buffered_bytes += len(chunk)
        if self.buffered_bytes > MAX_RESPONSE_BYTES and self.upstream is not None:
            self._abort_upstream()
            self._fail(ResponseTooLarge(MAX_RESPONSE_BYTES))

    def _take_lines(self, chunk: bytes) -> bytes:
        """Return the lines to forward; half a line before an error event would hide the event."""
        lines = self.line_buffer.take_lines(chunk)
        # About one token for each event: the count of a stream that ends before its usage.
        self.context.estimated_tokens += lines.count(b"data:")
        return replace_model_name(self.stream_end.inspect(lines), self.replacements) if lines else lines

    def _forward(self, lines: bytes) -> None:
        # The usage is in the last event before [DONE].
        self.previous_lines, self.last_lines = self.last_lines, lines
        if self.started:
            self.downstream.write(lines)
            return
        self.started = True
        self.context.start_response(self.status)
        self.downstream.start(self.status, self._response_headers() + UNBUFFERED_HEADERS, lines)

    def _finish_stream(self, lines: bytes) -> None:
        if not self.started:
            self._forward(lines)
            lines = b""
        self.context.response_tail = self.stream_end.usage or self.previous_lines + self.last_lines + lines
        self._estimate_tokens()
        self._record_engine_status()
        self._end()
        self.downstream.finish(lines)

    def _break_stream(self, lines: bytes) -> None:
        if not self.started:
            self._forward(lines)
            lines = b""
        self.targets.record(succeeded=False)
        error = EngineDisconnected(self.route.name)
        self.context.status = error.status
        self._estimate_tokens()
        self._end()
        self.downstream.finish(lines + self.stream_end.error_event(error, lines or self.last_lines))

    def _respond(self, chunk: bytes) -> None:
        if self.parts:
            self.parts.append(chunk)
            chunk = b"".join(self.parts)
        if self.status >= 400:
            seconds = self.headers.get(b"retry-after", b"")
            error = describe_engine_error(self.route.name, self.context.path, self.status, seconds, chunk)
            if error is not None:
                self._record_engine_status()
                self._fail(error)
                return
        chunk = replace_model_name(chunk, self.replacements)
        self.context.start_response(self.status)
        # At the end; vLLM's prompt_logprobs and prompt_token_ids follow it.
        if (place := find_usage(chunk)) >= 0:
            self.context.response_tail = chunk[place : place + USAGE_BYTES]
        elif self.status < 400:
            self._estimate_tokens(len(chunk))
        self._record_engine_status()
        self._end()
        self.downstream.respond(self.status, self._response_headers(), chunk)

    def _estimate_tokens(self, response_bytes: int = 0) -> None:
        # A stream that was cut off may have sent its usage before.
        if self.streamed and not self.context.response_tail:
            self.context.response_tail = self.stream_end.usage or self.previous_lines + self.last_lines
        self.context.estimated_tokens += (self.sent_bytes + response_bytes) // BYTES_PER_TOKEN

    def _record_engine_status(self) -> None:
        # An engine that does not implement a feature, or asks to retry later, is healthy.
        healthy = self.status < 500 or self.status == NOT_IMPLEMENTED or b"retry-after" in self.headers
        self.context.stream_failed = self.streamed and self.stream_end.failed
        self.targets.record(healthy and not self.context.stream_failed)

    def _end(self) -> None:
        """Release the engine and close the context; the client may send its next request from here on."""
        self.ended = True
        if self.task is not None:
            self.task.cancel()
        self._abort_upstream()
        self.context.close()

    def _abort_upstream(self) -> None:
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None

    def _response_headers(self) -> Headers:
        headers = [(name, self.headers[name]) for name in FORWARDED_HEADERS if name in self.headers]
        headers.append((b"x-request-id", self.context.request_id.encode()))
        return headers + self.context.limit_headers
