"""The engines behind the gateway: routes, circuit breakers, connections and reports of use."""

import asyncio
import logging
from functools import lru_cache
from urllib.parse import urlsplit

from serving.gateway.connection_pool import ConnectionPool, ResponseHandler
from serving.gateway.engine_state.breaker import CircuitBreakers
from serving.gateway.engine_state.model_details import ModelDetails
from serving.gateway.key_limits.token_use import TokenRecorder
from serving.gateway.routes import RoutingTable, Target
from serving.gateway.traffic.recorder import TrafficRecorder

REPORT_USE_SECONDS = 3.0

logger = logging.getLogger("tunesmith.gateway")


class Upstreams:
    """The engines of a routing table."""

    def __init__(self, routes: RoutingTable) -> None:
        self.routes = routes
        self.breakers = CircuitBreakers()
        self.traffic = TrafficRecorder(routes.record_traffic)
        self.details = ModelDetails(self.get)
        self.tokens = TokenRecorder(routes.record_tokens)
        self._pool: ConnectionPool | None = None
        self._used: set[str] = set()
        self._report_task: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Report the last use, traffic and tokens, and close the connections."""
        await self.traffic.aclose()
        await self.tokens.aclose()
        if self._report_task is not None:
            self._report_task.cancel()
            await self._report_use()
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    def send(
        self,
        target: Target,
        path: str,
        extra_headers: bytes,
        body: bytes,
        handler: ResponseHandler,
        fresh: bool = False,
    ) -> None:
        """Send a request to a target; the handler gets the response."""
        if self.breakers.circuits:
            self.breakers.record_attempt(target)
        self._used.add(target.deployment_id)
        if self._report_task is None:
            self._report_task = asyncio.get_running_loop().create_task(self._report_use_later())
        head = build_request_head(target.base_url, path)
        request = b"%b%bcontent-length: %d\r\n\r\n%b" % (head, extra_headers, len(body), body)
        self._open_pool().request(target.base_url, request, handler, fresh)

    def get(self, base_url: str, path: str, handler: ResponseHandler) -> None:
        """Send a GET to an engine, which counts neither as use of its deployment nor as a failure."""
        address = urlsplit(base_url)
        head = f"GET {address.path}{path} HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n"
        self._open_pool().request(base_url, head.encode(), handler)

    def _open_pool(self) -> ConnectionPool:
        if self._pool is None:
            self._pool = ConnectionPool()
        return self._pool

    async def _report_use_later(self) -> None:
        # After a delay, with all deployments used by then, so that the last request is reported, too.
        await asyncio.sleep(REPORT_USE_SECONDS)
        self._report_task = None
        await self._report_use()

    async def _report_use(self) -> None:
        used, self._used = self._used, set()
        try:
            await self.routes.record_use(used)
        except Exception:
            logger.exception("cannot record the use of deployments")


@lru_cache(maxsize=1024)
def build_request_head(base_url: str, path: str) -> bytes:
    """Return the request line and the headers that all requests to this path share."""
    address = urlsplit(base_url)
    line = f"POST {address.path}{path} HTTP/1.1\r\nhost: {address.netloc}\r\n"
    return f"{line}content-type: application/json\r\n".encode()
