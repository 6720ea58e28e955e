"""The gateway as an ASGI application, for a service that mounts it beside its own routes under uvicorn."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.gateway.caller import Headers, InFlightRequest
from serving.gateway.gateway import MAX_BODY_BYTES, Gateway, GatewayRequest, body_too_large, sender

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Chunks that wait for a slow client before the engine is slowed down too.
MOST_WAITING = 16


class ClientLeft(Exception):
    """Nobody is there to answer."""


class AsgiGateway:
    """A gateway at /v1 of another application.

    A mounted application hears nothing of its parent's end, so the parent calls `aclose`.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "The gateway has no websockets, and its parent lives for it."
        headers = dict(scope["headers"])
        address = scope["client"][0] if scope.get("client") else ""
        path = "/v1" + path_below_v1(scope)
        client = AsgiClient()
        task = None
        try:
            who = sender(headers, address)
            if self.gateway.known(who) is None:
                await self.gateway.admit(who)
            body = await read_body(headers, receive)
        except ClientLeft:
            return
        except Exception as fault:
            self.gateway.refuse(self.gateway.exchange(scope["method"], path, headers), fault, client)
        else:
            task = self.gateway.handle(GatewayRequest(scope["method"], path, headers, address, body), client)
        await client.pass_on(receive, send, task)

    async def aclose(self) -> None:
        """Close the connections to the engines."""
        await self.gateway.aclose()


class AsgiClient:
    """Keeps what is said to the client until ASGI's `send`, which has to be awaited, has taken it."""

    def __init__(self) -> None:
        self.job: InFlightRequest | None = None
        self.messages: deque[Message] = deque()
        self.complete = self.left = self.paused = False
        self.waiter: asyncio.Future[None] | None = None

    async def pass_on(self, receive: Receive, send: Send, task: "asyncio.Task[None] | None") -> None:
        """Send everything as it comes, and give the work up when the client leaves."""
        if self.complete:
            await self._send_waiting(send)
            return
        gone = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            while not (self.complete and not self.messages) and not self.left:
                if not self.messages:
                    self.waiter = asyncio.get_running_loop().create_future()
                    await self.waiter
                await self._send_waiting(send)
        finally:
            gone.cancel()
            if task is not None:
                task.cancel()
            if self.job is not None:
                self.job.cancel()

    async def _send_waiting(self, send: Send) -> None:
        while self.messages:
            await send(self.messages.popleft())
        if self.paused and self.job is not None:
            self.paused = False
            self.job.resume()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left = True
        self._wake()

    # What the gateway says.

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.finish(body)

    def begin(self, status: int, headers: Headers, chunk: bytes) -> None:
        self._start(status, headers)
        self.send(chunk)

    def send(self, chunk: bytes) -> None:
        self.messages.append({"type": "http.response.body", "body": chunk, "more_body": True})
        if len(self.messages) > MOST_WAITING and self.job is not None:
            self.paused = True
            self.job.pause()
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


def path_below_v1(scope: Scope) -> str:
    """The path without the mount point and without /v1, so that mounted and not look the same."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.removeprefix("/v1") if path.startswith("/v1/") else path


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body; raises BodyTooLarge and ClientLeft."""
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise body_too_large()
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] != "http.disconnect" and not message.get("more_body"):
        return body
    parts, size = [body], len(body)
    while message["type"] != "http.disconnect" and message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise body_too_large()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return b"".join(parts)
