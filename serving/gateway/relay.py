"""One generation request on its way to the engine and back."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from serving.gateway.asgi import Headers, Send, send_body, send_start, send_whole
from serving.gateway.errors import EngineDisconnected, EngineTimeout, EngineUnavailable
from serving.gateway.metrics import Exchange
from serving.gateway.routes import Route, RouteTable
from serving.gateway.upstream import (
    Upstream,
    UpstreamAnswer,
    UpstreamBroken,
    UpstreamSilent,
    UpstreamUnreachable,
)

# A JSON string holds no raw newline, so this can only be the event itself.
DONE = re.compile(rb"(?:^|\n)data: ?\[DONE\]")
PASSED_HEADERS = ("content-type", "retry-after")


@dataclass
class Relay:
    """What one request needs on its way."""

    routes: RouteTable
    upstream: Upstream
    exchange: Exchange
    route: Route
    path: str
    data: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Begun:
    """An answer whose first chunk is here."""

    answer: UpstreamAnswer
    first: bytes
    rest: AsyncIterator[bytes]

    @property
    def streamed(self) -> bool:
        return self.answer.headers.get("content-type", "").startswith("text/event-stream")


async def relay(work: Relay, send: Send) -> None:
    """Pass the request to the engine and its answer to the client; may raise ApiError until that begins."""
    begun = await begin(work)
    try:
        if begun.streamed:
            await pass_stream(work, begun, send)
        else:
            await pass_whole(work, begun, send)
    finally:
        begun.answer.close()


async def begin(work: Relay) -> Begun:
    """Wait for the first chunk; if the connection fails before it, look the route up and try once more."""
    try:
        return await attempt(work)
    except UpstreamUnreachable:
        await work.routes.refresh()
        route = work.routes.find(work.route.name)
    if route is None:
        raise EngineUnavailable(f"The deployment {work.route.name!r} has just been stopped.")
    work.route = route
    try:
        return await attempt(work)
    except UpstreamUnreachable as fault:
        message = (
            f"The engine of {work.route.name!r} cannot be reached; it may be starting again. Try again soon."
        )
        raise EngineUnavailable(message) from fault


async def attempt(work: Relay) -> Begun:
    """Send the request and wait for the first chunk; raises UpstreamUnreachable and EngineTimeout."""
    target = work.route.choose()
    assert target is not None
    if not target.base_url:
        target = await work.routes.wake(target)
    body = json.dumps(work.data | {"model": target.upstream_model}).encode()
    try:
        answer = await work.upstream.post(f"{target.base_url}/v1{work.path}", body, work.headers)
    except UpstreamSilent as fault:
        raise silence(work) from fault
    rest = answer.chunks()
    try:
        begun = Begun(answer, await anext(rest, b""), rest)
    except UpstreamBroken as fault:
        raise UpstreamUnreachable(str(fault)) from fault
    except UpstreamSilent as fault:
        answer.close()
        raise silence(work) from fault
    except BaseException:
        # The client has left while the engine was still thinking.
        answer.close()
        raise
    if begun.streamed and not begun.first:
        answer.close()
        raise UpstreamUnreachable("The stream ended before it began.")
    return begun


async def pass_whole(work: Relay, begun: Begun, send: Send) -> None:
    """A plain answer is held until it is complete, so that a break still becomes a proper error."""
    parts = [begun.first]
    try:
        async for chunk in begun.rest:
            parts.append(chunk)
    except UpstreamBroken as fault:
        raise EngineDisconnected(broken_off(work)) from fault
    except UpstreamSilent as fault:
        raise silence(work) from fault
    work.exchange.started(begun.answer.status)
    await send_whole(send, begun.answer.status, answer_headers(work, begun), b"".join(parts))


async def pass_stream(work: Relay, begun: Begun, send: Send) -> None:
    """Whole lines as they come; a stream that does not reach [DONE] ends with an error event instead."""
    work.exchange.started(begun.answer.status)
    unbuffered = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    await send_start(send, begun.answer.status, answer_headers(work, begun) + unbuffered)
    done = False
    try:
        async for lines in whole_lines(begun):
            done = done or DONE.search(lines) is not None
            await send_body(send, lines, more=True)
    except (UpstreamBroken, UpstreamSilent):
        pass
    if not done:
        work.exchange.status = EngineDisconnected.status
        await send_body(send, error_event(EngineDisconnected(broken_off(work))), more=True)
    await send_body(send, b"", more=False)


async def whole_lines(begun: Begun) -> AsyncIterator[bytes]:
    """The answer cut at line ends: half a line before an error event would hide the event from the client."""
    tail = b""
    chunk = begun.first
    while chunk:
        ready, end, rest = chunk.rpartition(b"\n")
        if end:
            yield tail + ready + end
            tail = rest
        else:
            tail += chunk
        chunk = await anext(begun.rest, b"")


def error_event(error: EngineDisconnected) -> bytes:
    """An error as the last event; the empty line before it ends an event that was cut short."""
    return b"\ndata: " + error.body() + b"\n\n"


def answer_headers(work: Relay, begun: Begun) -> Headers:
    """The engine's headers that mean something to the client, and the request's id."""
    passed = ((name, begun.answer.headers.get(name)) for name in PASSED_HEADERS)
    headers = [(name.encode(), value.encode("latin-1")) for name, value in passed if value is not None]
    return [*headers, (b"x-request-id", work.exchange.request_id.encode())]


def broken_off(work: Relay) -> str:
    """What a client is told when the engine ends in mid-answer."""
    return f"The engine of {work.route.name!r} broke off in the middle of its answer; send the request again."


def silence(work: Relay) -> EngineTimeout:
    """What a client is told when the engine says nothing."""
    return EngineTimeout(f"The engine of {work.route.name!r} has sent nothing for too long; try again later.")
