"""The gateway as an ASGI application: mounted at /v1 of another application, or run alone.

Life of a generation request: authorize, read the body, look the model name up, send the body on with the
engine's own name for the model, wait for the first chunk, answer, pass the chunks through. A second attempt
is made only if the connection failed before the first byte. When the client leaves, the request to the engine
is closed.
"""

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from serving.gateway.asgi import (
    ClientLeft,
    Headers,
    Receive,
    Scope,
    Send,
    bearer_token,
    header,
    path_below_v1,
    read_body,
    send_error,
    send_json,
    unless_client_leaves,
)
from serving.gateway.errors import (
    ApiError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    UnknownUrl,
)
from serving.gateway.metrics import Exchange
from serving.gateway.relay import Relay, relay
from serving.gateway.routes import Route, RouteTable
from serving.gateway.upstream import AiohttpUpstream, Upstream

Authorize = Callable[[str | None], Awaitable[None]]

GENERATION_PATHS = ("/chat/completions", "/completions")
SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
FORWARDED_HEADERS = (b"accept", b"traceparent")
logger = logging.getLogger("tunesmith.gateway")


async def allow_all(token: str | None) -> None:
    """Let every request in, with or without a key."""


class Gateway:
    """An ASGI application over a route table.

    `authorize` gets the bearer token and raises InvalidApiKey or Forbidden. A mounted application hears
    nothing of its parent's end, so the parent calls `aclose`.
    """

    def __init__(
        self, routes: RouteTable, authorize: Authorize = allow_all, upstream: Upstream | None = None
    ) -> None:
        self.routes = routes
        self.authorize = authorize
        self.upstream = upstream or AiohttpUpstream()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert scope["type"] == "http", "The gateway has no websockets."
        exchange = Exchange(request_id(scope), scope["method"], path_below_v1(scope))
        try:
            await self._respond(exchange, scope, receive, send)
        except ClientLeft:
            exchange.left()
        finally:
            exchange.ended()

    async def aclose(self) -> None:
        """Close the connections to the engines."""
        await self.upstream.aclose()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", exchange.request_id.encode())]
        try:
            await self.authorize(bearer_token(scope))
            await self._dispatch(exchange, scope, receive, send, headers)
        except ApiError as error:
            exchange.started(error.status)
            await send_error(send, headers, error)
        except ClientLeft:
            raise
        except Exception:
            logger.exception("%s %s failed", exchange.method, exchange.path)
            if exchange.first_byte_seconds is not None:
                raise
            exchange.started(InternalError.status)
            await send_error(
                send, headers, InternalError("The gateway failed on this request; its log says why.")
            )

    async def _dispatch(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send, headers: Headers
    ) -> None:
        path, method = exchange.path, exchange.method
        wanted = "POST" if path in GENERATION_PATHS else "GET"
        if path not in GENERATION_PATHS and path != "/models" and not path.startswith("/models/"):
            raise UnknownUrl(f"{method} {path} is not served here.")
        if method != wanted:
            raise MethodNotAllowed(f"{path} answers to {wanted}, not to {method}.")
        if wanted == "POST":
            await self._generate(exchange, scope, receive, send)
            return
        answer = await self._models(path.removeprefix("/models").removeprefix("/"))
        exchange.started(200)
        await send_json(send, headers, answer)

    async def _models(self, name: str) -> dict[str, Any]:
        """One model, or with an empty name the list of all."""
        if name:
            return described(await self._find(name))
        await self._refresh()
        return {"object": "list", "data": [described(route) for route in self.routes.all()]}

    async def _generate(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        data = parse_body(await read_body(scope, receive))
        route = await self._find(data["model"])
        exchange.model = route.name
        forwarded = ((name, header(scope, name)) for name in FORWARDED_HEADERS)
        headers = {name.decode(): value for name, value in forwarded if value is not None}
        headers |= {"content-type": "application/json", "x-request-id": exchange.request_id}
        work = Relay(self.routes, self.upstream, exchange, route, exchange.path, data, headers)
        await unless_client_leaves(receive, relay(work, send))

    async def _find(self, name: str) -> Route:
        await self._refresh()
        route = self.routes.find(name)
        if route is None:
            raise ModelNotFound(name, [known.name for known in self.routes.all()])
        return route

    async def _refresh(self) -> None:
        if not self.routes.fresh():
            await self.routes.refresh()


def request_id(scope: Scope) -> str:
    """The client's id for the request if it is one that may stand in a log, else a new one."""
    given = header(scope, b"x-request-id") or ""
    return given if SAFE_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def described(route: Route) -> dict[str, Any]:
    """A route as OpenAI describes a model."""
    created = int(route.created_at.timestamp())
    return {"id": route.name, "object": "model", "created": created, "owned_by": "tunesmith"}


def parse_body(body: bytes) -> dict[str, Any]:
    """The body as an object that names a model; raises InvalidRequest."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise InvalidRequest(f"The body is not valid JSON: {fault}.") from fault
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if not isinstance(data.get("model"), str):
        raise InvalidRequest("'model' must be the name of a deployment.", "model")
    return data
