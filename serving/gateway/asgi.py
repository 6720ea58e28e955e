"""The few pieces of ASGI that the gateway speaks."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from serving.gateway.errors import ApiError, BodyTooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MOST_BODY_BYTES = 8 * 1024 * 1024


class ClientLeft(Exception):
    """Nobody is there to answer."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def path_below_v1(scope: Scope) -> str:
    """The path without the mount point and without /v1, so that mounting and standing alone look the same."""
    path: str = scope["path"]
    path = path.removeprefix(scope.get("root_path", ""))
    return path.removeprefix("/v1") if path.startswith("/v1/") else path


def bearer_token(scope: Scope) -> str | None:
    """The key that the client sent."""
    scheme, _, token = (header(scope, b"authorization") or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body; raises BodyTooLarge and ClientLeft."""
    too_large = BodyTooLarge(f"The body is larger than {MOST_BODY_BYTES} bytes; send less text.")
    announced = header(scope, b"content-length") or "0"
    if announced.isdigit() and int(announced) > MOST_BODY_BYTES:
        raise too_large
    parts: list[bytes] = []
    more, size = True, 0
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY_BYTES:
            raise too_large
        more = message.get("more_body", False)
    return b"".join(parts)


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and cancel it when the client leaves; then raises ClientLeft."""
    task, gone = asyncio.create_task(work), asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_start(send: Send, status: int, headers: Headers) -> None:
    """Status and headers."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def send_body(send: Send, body: bytes, more: bool) -> None:
    """A part of the body."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """A complete answer."""
    await send_start(send, status, [*headers, (b"content-length", str(len(body)).encode())])
    await send_body(send, body, more=False)


async def send_json(send: Send, headers: Headers, data: object) -> None:
    """A complete answer of ours."""
    body = json.dumps(data, ensure_ascii=False).encode()
    await send_whole(send, 200, [(b"content-type", b"application/json"), *headers], body)


async def send_error(send: Send, headers: Headers, error: ApiError) -> None:
    """An error as a complete answer."""
    further = [(b"content-type", b"application/json")]
    if error.retry_after_seconds is not None:
        further.append((b"retry-after", str(error.retry_after_seconds).encode()))
    if error.status == 401:
        further.append((b"www-authenticate", b"Bearer"))
    await send_whole(send, error.status, [*further, *headers], error.body())
