"""The server of the standalone gateway: it accepts connections, enforces timeouts and shuts down in order."""

import asyncio
import json
import signal
import socket
import time
from email.utils import formatdate

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from serving.gateway.downstream import JSON_HEADERS, Downstream, GatewayRequest
from serving.gateway.gateway import Gateway
from serving.gateway.standalone.connection import ClientConnection, GatewayServerState
from serving.gateway.standalone.repeated_task import PROBLEMS, repeat_task
from serving.http.errors import UnknownUrl

DRAIN_SECONDS = 10.0
CHECK_SECONDS = 1.0
BACKLOG = 2048


class GatewayServer:
    """The server of one process, which adds /health and /metrics to the gateway."""

    def __init__(self, gateway: Gateway, metrics: Collector = REGISTRY) -> None:
        self.gateway = gateway
        self.metrics = metrics
        self.state = GatewayServerState(gateway, self.handle)

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then complete the responses in progress."""
        loop = asyncio.get_running_loop()
        state = self.state
        server = await loop.create_server(lambda: ClientConnection(state), sock=listener, backlog=BACKLOG)
        checking = loop.create_task(
            repeat_task("checks of connections", self._check_connections, CHECK_SECONDS)
        )
        await stop.wait()
        server.close()
        state.draining = True
        for connection in list(state.connections):
            connection.drain()
        deadline = loop.time() + DRAIN_SECONDS
        while state.connections and loop.time() < deadline:
            await asyncio.sleep(0.05)
        for connection in list(state.connections):
            connection.transport.abort()
        checking.cancel()
        await self.gateway.aclose()

    def handle(self, request: GatewayRequest, downstream: Downstream) -> asyncio.Task[None] | None:
        """Handle a request of any path."""
        if self.gateway.respond_at_edge(request.method, request.path, request.headers, downstream):
            return None
        if request.path.startswith("/v1/"):
            return self.gateway.handle(request, downstream)
        if request.path == "/health" and request.method in ("GET", "HEAD"):
            downstream.respond(200, JSON_HEADERS, _health())
        elif request.path == "/metrics" and request.method in ("GET", "HEAD"):
            self.gateway.recorder.flush()
            headers = [(b"content-type", CONTENT_TYPE_LATEST.encode())]
            downstream.respond(200, headers, generate_latest(self.metrics))
        else:
            context = self.gateway.open_context(request.method, request.path, request.headers)
            context.fail(UnknownUrl(f"{request.path} does not exist."), downstream)
        return None

    def _check_connections(self) -> None:
        """Check timeouts, and update the Date header of all responses."""
        self.state.date_line = f"date: {formatdate(usegmt=True)}\r\n".encode()
        now = time.monotonic()
        for connection in list(self.state.connections):
            connection.check_timeout(now)


def _health() -> bytes:
    """Return the health of this process, which serves requests whatever else fails."""
    report = {"status": "degraded", "problems": PROBLEMS} if PROBLEMS else {"status": "ok"}
    return json.dumps(report).encode()


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
