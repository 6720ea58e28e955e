"""The server of the gateway that stands alone.

It listens, keeps time for its connections and ends in order.
"""

import asyncio
import signal
import socket
import time
from email.utils import formatdate

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from serving.gateway.caller import Downstream
from serving.gateway.gateway import JSON, Gateway, GatewayRequest
from serving.gateway.standalone.connection import ClientConnection
from serving.http.errors import UnknownUrl

DRAIN_SECONDS = 10.0
LOOK_SECONDS = 1.0
BACKLOG = 2048


class GatewayServer:
    """One process's side of the gateway, with /health and /metrics beside it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.date_line = b""

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve until told to stop, then let the answers under way end."""
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: ClientConnection(self), sock=listener, backlog=BACKLOG)
        looking = loop.create_task(self._look())
        await stop.wait()
        listening.close()
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        deadline = loop.time() + DRAIN_SECONDS
        while self.connections and loop.time() < deadline:
            await asyncio.sleep(0.05)
        for connection in list(self.connections):
            connection.transport.abort()
        looking.cancel()
        await self.gateway.aclose()

    def handle(self, request: GatewayRequest, client: Downstream) -> asyncio.Task[None] | None:
        """Answer a request."""
        if request.path.startswith("/v1/"):
            return self.gateway.handle(request, client)
        if request.path == "/health" and request.method in ("GET", "HEAD"):
            client.whole(200, JSON, b'{"status": "ok"}')
        elif request.path == "/metrics" and request.method in ("GET", "HEAD"):
            self.gateway.ledger.settle()
            client.whole(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], generate_latest(REGISTRY))
        else:
            unknown = self.gateway.exchange(request.method, request.path, request.headers)
            self.gateway.refuse(unknown, UnknownUrl(f"{request.path} is not served here."), client)
        return None

    async def _look(self) -> None:
        """Once a second: time limits, and the date that every answer bears."""
        while True:
            self.date_line = f"date: {formatdate(usegmt=True)}\r\n".encode()
            now = time.monotonic()
            for connection in list(self.connections):
                connection.look(now)
            await asyncio.sleep(LOOK_SECONDS)


def bind_socket(host: str, port: int, shared: bool) -> socket.socket:
    """A bound socket; a shared one lets every worker have its own, among which the kernel spreads clients."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
