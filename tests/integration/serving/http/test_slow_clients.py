"""Clients that send too slowly or are too many, on both servers.

Method: each server runs in the test's event loop, and the test calls `check_timeout` with a later time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.http.edges.protocol import HttpProtocol
from serving.gateway.gateway import Gateway
from serving.gateway.routes import StaticRoutingTable
from serving.gateway.standalone.server import GatewayServer
from serving.http.limits import BODY_TIMEOUT_SECONDS, HEAD_TIMEOUT_SECONDS, MIN_BODY_BYTES_PER_SECOND
from serving.processes.supervisor import bind_socket

HEAD = b"POST /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@dataclass
class LocalServer:
    """A server in this event loop."""

    port: int
    connections: Callable[[], set[Any]]
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, *parts: bytes) -> tuple[asyncio.StreamReader, Any]:
        """Send the parts; return the reader and the server's side of the connection."""
        before = set(self.connections())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        for part in parts:
            writer.write(part)
            await writer.drain()
        while not (new := self.connections() - before):
            await asyncio.sleep(0.01)
        (connection,) = new
        connection.client_side = writer
        while parts and not connection.parser.in_request:
            await asyncio.sleep(0.01)
        return reader, connection

    async def close_clients(self) -> None:
        """Close the clients, and wait until the server has noticed."""
        for client in self.clients:
            client.close()
        while self.connections():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def api_server() -> AsyncIterator[LocalServer]:
    async def read_body(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"complete"})

    config = uvicorn.Config(read_body, http=HttpProtocol, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpProtocol(config, state, {}), "127.0.0.1", 0)
    local = LocalServer(server.sockets[0].getsockname()[1], lambda: set(state.connections))
    yield local
    await local.close_clients()
    server.close()


@asynccontextmanager
async def gateway_server() -> AsyncIterator[LocalServer]:
    stop = asyncio.Event()
    listener = bind_socket("127.0.0.1", 0, shared=False)
    listener.listen()
    server = GatewayServer(Gateway(StaticRoutingTable([])))
    serving = asyncio.create_task(server.serve(listener, stop))
    local = LocalServer(listener.getsockname()[1], lambda: set(server.state.connections))
    yield local
    await local.close_clients()
    stop.set()
    await serving


SERVERS = pytest.mark.parametrize("start", [api_server, gateway_server])
Start = Callable[[], Any]


@SERVERS
@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        ([HEAD + b"X-A:"], HEAD_TIMEOUT_SECONDS),
        ([HEAD + b"Content-Length: 9\r\n\r\nhalf"], BODY_TIMEOUT_SECONDS),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhalf"], BODY_TIMEOUT_SECONDS),
    ],
)
def test_an_incomplete_request_times_out(start: Start, parts: list[bytes], seconds: float) -> None:
    async def send() -> bytes:
        async with start() as server:
            before = time.monotonic()
            reader, connection = await server.connect(*parts)
            connection.check_timeout(before + seconds - 0.1)
            assert connection in server.connections()
            connection.check_timeout(time.monotonic() + seconds + 1)
            response: bytes = await reader.read()
            return response

    response = asyncio.run(send())
    assert response.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in response


@SERVERS
@pytest.mark.parametrize("parts", [[], [b"\r\n\r\n"]])
def test_a_client_that_sends_no_request_is_disconnected(start: Start, parts: list[bytes]) -> None:
    async def send() -> bytes:
        async with start() as server:
            reader, connection = await server.connect()
            for part in parts:
                connection.client_side.write(part)
            await asyncio.sleep(0)
            connection.check_timeout(time.monotonic() + HEAD_TIMEOUT_SECONDS + 1)
            try:
                response: bytes = await reader.read()
            except ConnectionResetError:
                response = b""
            return response

    assert asyncio.run(send()) == b""


@SERVERS
def test_a_client_of_a_full_server_gets_503(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.edges.protocol.MAX_CONNECTIONS", 2)
    monkeypatch.setattr("serving.gateway.standalone.connection.max_connections", lambda: 2)

    async def connect() -> tuple[bytes, bytes]:
        async with start() as server:
            await server.connect()
            await server.connect()
            reader, _ = await server.connect()
            refused = await reader.read()
            await server.close_clients()
            reader, connection = await server.connect()
            connection.client_side.write(HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
            return refused, await reader.read()

    refused, served = asyncio.run(connect())
    assert refused.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in refused
    assert b"too_many_connections" in refused
    assert not served.startswith(b"HTTP/1.1 503 ")


def test_a_large_upload_may_take_longer_than_a_small_one() -> None:
    n_bytes = 20 * MIN_BODY_BYTES_PER_SECOND

    async def send() -> bytes:
        async with api_server() as server:
            head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (n_bytes + 1)
            before = time.monotonic()
            reader, connection = await server.connect(head + b"a" * n_bytes)
            while connection.parser.in_head:
                await asyncio.sleep(0.01)
            connection.check_timeout(before + BODY_TIMEOUT_SECONDS + 15)
            connection.client_side.write(b"a")
            response: bytes = await reader.read()
            return response

    assert asyncio.run(send()).endswith(b"complete\r\n0\r\n\r\n")
