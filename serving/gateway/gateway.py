"""The gateway itself, whichever server stands before it.

Life of a generation request: admit the sender, read the body as a plan, look the model name up, choose a
target, send the body on with the engine's own name for the model, wait for the first chunk, answer, pass the
chunks through. Only paths below /v1 that are named here reach an engine.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from serving.gateway.breaker import CircuitBreakers
from serving.gateway.caller import Downstream, Headers
from serving.gateway.proxy import ProxiedRequest
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.gateway.request_body import RequestLimits, read
from serving.gateway.request_context import RequestContext, RequestRecorder, log_lines
from serving.gateway.routes import REFRESH_SECONDS, Route, RouteTable, Target
from serving.gateway.upstream import ConnectionPool
from serving.http.errors import (
    ApiError,
    BodyTooLarge,
    InternalError,
    MethodNotAllowed,
    ModelNotServed,
    UnknownUrl,
)

ENGINE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"})
MODELS_PATH = "/v1/models"
FORWARDED_HEADERS = (b"accept", b"traceparent")
MAX_BODY_BYTES = 8 * 1024 * 1024
MOST_CACHED_SENDERS = 1000
USED_SECONDS = 3.0
JSON: Headers = [(b"content-type", b"application/json")]

logger = logging.getLogger("tunesmith.gateway")


class ClientIdentity(NamedTuple):
    """Who sends a request, as far as it shows."""

    authorization: bytes | None
    host: bytes
    address: str
    forwarded: bool = False
    """Whether a proxy says that it asks for somebody else."""

    def token(self) -> str | None:
        """The bearer token."""
        scheme, _, token = (self.authorization or b"").decode("latin-1").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None


@dataclass(slots=True)
class GatewayRequest:
    """A request whose body is here; header names are in lower case, the path begins with /v1/."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    address: str
    body: bytes

    def sender(self) -> ClientIdentity:
        return sender(self.headers, self.address)


Authorize = Callable[[ClientIdentity], Awaitable[AuthorizedClient]]


def sender(headers: Mapping[bytes, bytes], address: str) -> ClientIdentity:
    """Who sends a request with these headers."""
    forwarded = b"x-forwarded-for" in headers or b"forwarded" in headers
    return ClientIdentity(headers.get(b"authorization"), headers.get(b"host", b""), address, forwarded)


def body_too_large() -> BodyTooLarge:
    """What a client with too much text is told."""
    return BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes; send less text.")


async def allow_all(sender: ClientIdentity) -> AuthorizedClient:
    """Let every request in, with or without a key."""
    return AuthorizedClient()


class Gateway:
    """Answers requests from the engines of a route table.

    `authorize` raises InvalidApiKey or Forbidden; whom it let in is let in again for a second. `log` gets
    the exchanges that have ended, several together.
    """

    def __init__(
        self,
        routes: RouteTable,
        authorize: Authorize = allow_all,
        caps: RequestLimits | None = None,
        log: Callable[[list[RequestContext]], None] = log_lines,
        rate_limits: RateLimits | None = None,
    ) -> None:
        self.routes = routes
        self.caps = caps or RequestLimits()
        self.rate_limits = rate_limits or RateLimits()
        self.ledger = RequestRecorder(log)
        self.breakers = CircuitBreakers()
        self._authorize = authorize
        self._callers: dict[ClientIdentity, tuple[AuthorizedClient, float]] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._pool: ConnectionPool | None = None
        self._used: set[str] = set()
        self._telling: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Tell what was used and what has ended, and close the connections to the engines."""
        self.ledger.settle()
        if self._telling is not None:
            self._telling.cancel()
            await self._tell_used()
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    def known(self, sender: ClientIdentity) -> AuthorizedClient | None:
        """The caller, if the sender was admitted within the last second."""
        caller, until = self._callers.get(sender, (None, 0.0))
        return caller if time.monotonic() < until else None

    async def admit(self, sender: ClientIdentity) -> AuthorizedClient:
        """The caller; raises InvalidApiKey or Forbidden."""
        caller = await self._authorize(sender)
        if len(self._callers) >= MOST_CACHED_SENDERS:
            self._callers.clear()
        self._callers[sender] = caller, time.monotonic() + REFRESH_SECONDS
        return caller

    def handle(self, request: GatewayRequest, client: Downstream) -> asyncio.Task[None] | None:
        """Begin to answer: at once, or in a task if the sender or the routes have to be looked up first."""
        caller = self.known(request.sender())
        if caller is not None and self.routes.fresh():
            return self._answer(request, caller, client)
        return asyncio.get_running_loop().create_task(self._prepare(request, client))

    def refuse(self, exchange: RequestContext, fault: Exception, client: Downstream) -> None:
        """Answer with an error; what is no ApiError is a bug, and only the log tells it."""
        if not isinstance(fault, ApiError):
            logger.error("%s %s failed", exchange.method, exchange.path, exc_info=fault)
            fault = InternalError("The gateway failed on this request; its log says why.")
        exchange.started(fault.status)
        exchange.ended()
        headers = [*fault.headers(), (b"x-request-id", exchange.request_id.encode())]
        client.whole(fault.status, headers, fault.body())

    def exchange(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestContext:
        """The record of a request that begins now."""
        return RequestContext(method, path, headers.get(b"x-request-id"), self.ledger)

    def pool(self) -> ConnectionPool:
        """The connections to the engines; made at the first request, inside the running event loop."""
        if self._pool is None:
            self._pool = ConnectionPool()
        return self._pool

    def head(self, base_url: str, path: str) -> bytes:
        """The beginning of every request to an engine for a path."""
        head = self._heads.get((base_url, path))
        if head is None:
            address = urlsplit(base_url)
            line = f"POST {address.path}{path} HTTP/1.1\r\nhost: {address.netloc}\r\n"
            head = self._heads[base_url, path] = f"{line}content-type: application/json\r\n".encode()
        return head

    def asked(self, target: Target) -> None:
        """Note that a request goes to a target."""
        if self.breakers.circuits:
            self.breakers.asked(target)
        self._used.add(target.deployment_id)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell_used_soon())

    async def _tell_used_soon(self) -> None:
        """Tell after a while, together with what is used meanwhile: the last request must be told too."""
        await asyncio.sleep(USED_SECONDS)
        self._telling = None
        await self._tell_used()

    async def _tell_used(self) -> None:
        used, self._used = self._used, set()
        try:
            await self.routes.used(used)
        except Exception:
            logger.exception("The use of deployments could not be noted.")

    async def _prepare(self, request: GatewayRequest, client: Downstream) -> None:
        try:
            sender = request.sender()
            caller = self.known(sender) or await self.admit(sender)
            if not self.routes.fresh():
                await self.routes.refresh()
        except Exception as fault:
            self.refuse(self.exchange(request.method, request.path, request.headers), fault, client)
        else:
            if (later := self._answer(request, caller, client)) is not None:
                await later

    def _answer(
        self, request: GatewayRequest, caller: AuthorizedClient, client: Downstream
    ) -> asyncio.Task[None] | None:
        exchange = self.exchange(request.method, request.path, request.headers)
        exchange.key_id = caller.key_id
        try:
            self._dispatch(exchange, request, caller, client)
        except ModelNotServed:
            return asyncio.get_running_loop().create_task(self._look_again(exchange, request, caller, client))
        except Exception as fault:
            self.refuse(exchange, fault, client)
        return None

    async def _look_again(
        self, exchange: RequestContext, request: GatewayRequest, caller: AuthorizedClient, client: Downstream
    ) -> None:
        """A name that is not known may have come up since the routes were read."""
        try:
            await self.routes.look_again()
            self._dispatch(exchange, request, caller, client)
        except Exception as fault:
            self.refuse(exchange, fault, client)

    def _dispatch(
        self, exchange: RequestContext, request: GatewayRequest, caller: AuthorizedClient, client: Downstream
    ) -> None:
        path, method = request.path, request.method
        if path in ENGINE_PATHS:
            if method != "POST":
                raise MethodNotAllowed(path, method, "POST")
            self._generate(exchange, request, caller, client)
        elif path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
            if method != "GET":
                raise MethodNotAllowed(path, method, "GET")
            answer = self._models(path.removeprefix(MODELS_PATH).removeprefix("/"))
            exchange.started(200)
            exchange.ended()
            headers = [*JSON, (b"x-request-id", exchange.request_id.encode())]
            client.whole(200, headers, json.dumps(answer, ensure_ascii=False).encode())
        else:
            raise UnknownUrl(f"{method} {path} is not served here.")

    def _models(self, name: str) -> dict[str, Any]:
        """One model, or with an empty name the list of all."""
        if name:
            return described(self._find(name))
        return {"object": "list", "data": [described(route) for route in self.routes.all()]}

    def _generate(
        self, exchange: RequestContext, request: GatewayRequest, caller: AuthorizedClient, client: Downstream
    ) -> None:
        plan = read(request.body, self.caps)
        route = self._find(plan.model)
        exchange.model = route.name
        if caller.limited:
            exchange.leave = self.rate_limits.enter(caller)
        further = b"x-request-id: %b\r\n" % exchange.request_id.encode()
        for name in FORWARDED_HEADERS:
            if name in request.headers:
                further += b"%b: %b\r\n" % (name, request.headers[name])
        ProxiedRequest(self, exchange, route, plan, further, client).start()

    def _find(self, name: str) -> Route:
        route = self.routes.find(name)
        if route is None:
            raise ModelNotServed(name, [known.name for known in self.routes.all()])
        return route


def described(route: Route) -> dict[str, Any]:
    """A route as OpenAI describes a model."""
    created = int(route.created_at.timestamp())
    return {"id": route.name, "object": "model", "created": created, "owned_by": "tunesmith"}
