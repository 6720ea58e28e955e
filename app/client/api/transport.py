"""The two ways to send a request: blocking, whose coroutines never suspend, and asynchronous."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, TypeVar

import anyio.to_thread
import httpx2

CHUNK_BYTES = 1 << 18
MAX_EVENT_BYTES = 64 << 20

Value = TypeVar("Value")


class Transport(Protocol):
    """What the connection needs: sending requests, reading responses, and waiting."""

    is_blocking: bool

    async def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        """Send a request; with `stream`, return before the body is read."""
        ...

    async def read(self, response: httpx2.Response) -> None:
        """Read the whole body of a streamed response."""
        ...

    async def release(self, response: httpx2.Response) -> None:
        """Close a streamed response."""
        ...

    def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        """Yield the body of a streamed response as it arrives."""
        ...

    def events(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        """Yield the server-sent events of a streamed response."""
        ...

    async def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Return the result of a function that reads or writes files, while other work continues."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class BlockingTransport:
    """Requests of a thread, which waits for each response."""

    is_blocking = True

    def __init__(self) -> None:
        self._client = httpx2.Client()

    async def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        return self._client.send(request, stream=stream)

    async def read(self, response: httpx2.Response) -> None:
        response.read()

    async def release(self, response: httpx2.Response) -> None:
        response.close()

    async def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        # As they arrive: larger chunks would lose what arrived before an interruption.
        for chunk in response.iter_raw():
            yield chunk

    async def events(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        for event in httpx2.EventSource(response, MAX_EVENT_BYTES):
            yield event

    async def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        return function(*arguments)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self._client.close()


class ConcurrentTransport:
    """Requests of an event loop, which does other work meanwhile."""

    is_blocking = False

    def __init__(self) -> None:
        self._client = httpx2.AsyncClient()

    async def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        return await self._client.send(request, stream=stream)

    async def read(self, response: httpx2.Response) -> None:
        await response.aread()

    async def release(self, response: httpx2.Response) -> None:
        await response.aclose()

    async def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        async for chunk in response.aiter_raw():
            yield chunk

    async def events(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        async for event in httpx2.EventSource(response, MAX_EVENT_BYTES):
            yield event

    async def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        return await anyio.to_thread.run_sync(function, *arguments)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._client.aclose()
