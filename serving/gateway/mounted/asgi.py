"""The gateway as an ASGI application, for a service that mounts it under uvicorn."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.gateway.downstream import (
    GatewayRequest,
    Headers,
    InFlightRequest,
    client_identity,
)
from serving.gateway.gateway import Gateway
from serving.gateway.rate_limits import AuthorizedClient
from serving.http.errors import BodyTooLarge
from serving.http.limits import MAX_BODY_BYTES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Messages that wait for a slow client before reading from the engine pauses.
MAX_WAITING_MESSAGES = 16


class ClientDisconnected(Exception):
    """The client disconnected before its request was complete."""


class AsgiGateway:
    """A gateway at /v1 of another application.

    A mounted application gets no lifespan events, so the parent must call `aclose`.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the parent handles lifespan events, and there are no websockets"
        headers = dict(scope["headers"])
        address = scope["client"][0] if scope.get("client") else ""
        path = "/v1" + path_below_v1(scope)
        downstream = AsgiDownstream()
        task = None
        if self.gateway.origins.allowed:
            send = add_headers(send, self.gateway.origins.response_headers(headers))
        if self.gateway.respond_at_edge(scope["method"], path, headers, downstream):
            await downstream.forward(receive, send, None)
            return
        try:
            identity = client_identity(headers, address)
            if self.gateway.cached_client(identity) is None:
                await self.gateway.authorize(identity)
            body = await read_body(headers, receive)
        except ClientDisconnected:
            return
        except Exception as error:
            self.gateway.open_context(scope["method"], path, headers).fail(error, downstream)
        else:
            request = GatewayRequest(scope["method"], path, headers, address, body)
            task = self.gateway.handle(request, downstream)
        await downstream.forward(receive, send, task)

    async def serve(
        self, client: AuthorizedClient, path: str, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a request that the parent has read, as one for a path below /v1 by a client it authorized."""
        address = scope["client"][0] if scope.get("client") else ""
        downstream = AsgiDownstream()
        headers = dict(scope["headers"])
        request = GatewayRequest(scope["method"], path, headers, address, body, client)
        await downstream.forward(receive, send, self.gateway.handle(request, downstream))

    async def aclose(self) -> None:
        """Close the connections to the engines."""
        await self.gateway.aclose()


class AsgiDownstream:
    """Queues a response's messages until ASGI's `send`, which must be awaited, has taken them."""

    def __init__(self) -> None:
        self.in_flight: InFlightRequest | None = None
        self.messages: deque[Message] = deque()
        self.complete = self.disconnected = self.paused = False
        self.waiter: asyncio.Future[None] | None = None

    async def forward(self, receive: Receive, send: Send, task: "asyncio.Task[None] | None") -> None:
        """Send the messages as they arrive, and cancel the request if the client disconnects."""
        if self.complete:
            await self._send_waiting(send)
            return
        watch = asyncio.get_running_loop().create_task(self._watch_disconnect(receive))
        try:
            while not (self.complete and not self.messages) and not self.disconnected:
                if not self.messages:
                    self.waiter = asyncio.get_running_loop().create_future()
                    await self.waiter
                await self._send_waiting(send)
        finally:
            watch.cancel()
            if task is not None:
                task.cancel()
            if self.in_flight is not None:
                self.in_flight.cancel()

    async def _send_waiting(self, send: Send) -> None:
        while self.messages:
            await send(self.messages.popleft())
        if self.paused and self.in_flight is not None:
            self.paused = False
            self.in_flight.resume()

    async def _watch_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        self._wake()

    # Called by the gateway.

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.finish(body)

    def start(self, status: int, headers: Headers, chunk: bytes) -> None:
        self._start(status, headers)
        self.write(chunk)

    def write(self, chunk: bytes) -> None:
        self.messages.append({"type": "http.response.body", "body": chunk, "more_body": True})
        if len(self.messages) > MAX_WAITING_MESSAGES and self.in_flight is not None:
            self.paused = True
            self.in_flight.pause()
        self._wake()

    def finish(self, chunk: bytes) -> None:
        self.messages.append({"type": "http.response.body", "body": chunk, "more_body": False})
        self.complete = True
        self._wake()

    def _start(self, status: int, headers: Headers) -> None:
        self.messages.append({"type": "http.response.start", "status": status, "headers": headers})

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


def add_headers(send: Send, headers: Headers) -> Send:
    """Return a `send` that adds headers to the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return send_with_headers


def path_below_v1(scope: Scope) -> str:
    """Return the path without the mount point and without /v1."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.removeprefix("/v1") if path.startswith("/v1/") else path


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the complete body; raises BodyTooLarge and ClientDisconnected."""
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
