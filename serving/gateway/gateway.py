"""The gateway, independent of the HTTP server in front of it.

Life of a generation request: authorize the client, parse the body, look the model name up, choose a target,
forward the body with the engine's own name of the model, wait for the first chunk, respond, and forward the
chunks. Only the paths listed here reach an engine.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serving.gateway.downstream import JSON_HEADERS, ClientIdentity, Downstream, GatewayRequest
from serving.gateway.key_limits.headers import check_model, make_limit_headers
from serving.gateway.proxy.proxied_request import ProxiedRequest
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.gateway.request_body import RequestLimits, parse_request_body
from serving.gateway.request_context import RequestContext, RequestRecorder, log_requests
from serving.gateway.routes import EMBED, GENERATE, REFRESH_SECONDS, Route, RoutingTable
from serving.gateway.stored_answers.proxied_request import StoredRequest, needs_store
from serving.gateway.stored_answers.store import AnswerStore
from serving.gateway.upstreams import Upstreams
from serving.http.addresses import is_local_request
from serving.http.content_encoding import unpack_body
from serving.http.cross_site import OriginPolicy
from serving.http.errors import (
    ApiError,
    InvalidRequest,
    KeyCheckUnavailable,
    MethodNotAllowed,
    ModelNotReady,
    ModelNotServed,
    PermissionDenied,
    TaskNotServed,
    UnknownUrl,
)

ENGINE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"})
EMBEDDINGS_PATH = "/v1/embeddings"
MODELS_PATH = "/v1/models"
FORWARDED_HEADERS = (b"accept", b"traceparent")
MAX_CACHED_CLIENTS = 1000
NO_STORE = (
    "This gateway stores no responses, so there is none to continue. Send the whole conversation in 'input', "
    "or use the gateway of the API, which stores responses of deployments with 'store_days'."
)
# While API keys cannot be checked, one that was valid so recently still is.
MAX_UNCHECKED_SECONDS = 300.0

Authorize = Callable[[ClientIdentity], Awaitable[AuthorizedClient]]


async def allow_all(identity: ClientIdentity) -> AuthorizedClient:
    """Authorize every client, with or without an API key."""
    return AuthorizedClient()


async def allow_local(identity: ClientIdentity) -> AuthorizedClient:
    """Authorize clients on this machine; raise PermissionDenied for others and for proxies."""
    if not is_local_request(identity.host, identity.address, identity.forwarded):
        raise PermissionDenied(
            "The gateway has no API key and accepts requests from its own machine only, with a loopback host "
            "name and not through a proxy. Start it with --client-key-env or --api."
        )
    return AuthorizedClient()


class Gateway:
    """Serves requests from the engines of a routing table.

    `authorize` raises InvalidApiKey or PermissionDenied; its result is reused for a second. `log` gets closed
    request contexts, several at a time. With a `store`, answers are
    stored where the deployment allows it.
    """

    def __init__(
        self,
        routes: RoutingTable,
        authorize: Authorize = allow_all,
        limits: RequestLimits | None = None,
        log: Callable[[list[RequestContext]], None] = log_requests,
        rate_limits: RateLimits | None = None,
        origins: OriginPolicy | None = None,
        store: AnswerStore | None = None,
    ) -> None:
        self.routes = routes
        self.upstreams = Upstreams(routes)
        self.limits = limits or RequestLimits()
        self.rate_limits = rate_limits or RateLimits()
        self.origins = origins or OriginPolicy()
        self.recorder = RequestRecorder(log, self._observe)
        self.store = store
        self._authorize = authorize
        self._clients: dict[ClientIdentity, tuple[AuthorizedClient, float]] = {}

    async def aclose(self) -> None:
        """Log the last requests, report the last use, and close the connections to the engines."""
        self.recorder.flush()
        await self.upstreams.aclose()
        if self.store is not None:
            await self.store.aclose()

    def _observe(self, context: RequestContext) -> None:
        self.upstreams.traffic.observe(context)
        self.upstreams.tokens.observe(context)

    def cached_client(self, identity: ClientIdentity) -> AuthorizedClient | None:
        """Return the client if it was authorized within the last second, else None."""
        client, until = self._clients.get(identity, (None, 0.0))
        return client if time.monotonic() < until else None

    async def authorize(self, identity: ClientIdentity) -> AuthorizedClient:
        """Authorize a client; raises InvalidApiKey or PermissionDenied."""
        known, until = self._clients.get(identity, (None, 0.0))
        try:
            client = await self._authorize(identity)
        except KeyCheckUnavailable:
            # A chat must not fail because the database restarts.
            if known is None or time.monotonic() > until + MAX_UNCHECKED_SECONDS:
                raise
            return known
        except ApiError:
            self._clients.pop(identity, None)
            raise
        if len(self._clients) >= MAX_CACHED_CLIENTS:
            self._clients.clear()
        self._clients[identity] = client, time.monotonic() + REFRESH_SECONDS
        return client

    def respond_at_edge(
        self, method: str, path: str, headers: Mapping[bytes, bytes], downstream: Downstream
    ) -> bool:
        """Respond to a page of another origin, and to a browser's preflight; return False for the rest."""
        try:
            self.origins.check(method, headers)
        except ApiError as error:
            self.open_context(method, path, headers).fail(error, downstream)
            return True
        if method != "OPTIONS":
            return False
        preflight = self.origins.preflight_headers(headers)
        if preflight is not None:
            downstream.respond(200, preflight, b"")
        return preflight is not None

    def handle(self, request: GatewayRequest, downstream: Downstream) -> asyncio.Task[None] | None:
        """Handle a request: at once, or in a task if the client or the routes must be looked up first."""
        client = request.client or self.cached_client(request.identity())
        if client is not None and self.routes.is_fresh() and not self._must_ask_engines(request):
            return self._dispatch(request, client, downstream)
        return asyncio.get_running_loop().create_task(self._prepare(request, downstream))

    def open_context(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestContext:
        """Return the context of a request that starts now."""
        return RequestContext(method, path, headers.get(b"x-request-id"), self.recorder)

    async def _prepare(self, request: GatewayRequest, downstream: Downstream) -> None:
        try:
            identity = request.identity()
            client = request.client or self.cached_client(identity) or await self.authorize(identity)
            if not self.routes.is_fresh():
                await self.routes.refresh()
            if self._must_ask_engines(request):
                await self.upstreams.details.learn(self.routes.all())
        except Exception as error:
            self.open_context(request.method, request.path, request.headers).fail(error, downstream)
        else:
            if (task := self._dispatch(request, client, downstream)) is not None:
                await task

    def _must_ask_engines(self, request: GatewayRequest) -> bool:
        """Return whether a list of models needs the engines' own lists."""
        return request.path.startswith(MODELS_PATH) and not self.upstreams.details.are_known(
            self.routes.all()
        )

    def _dispatch(
        self, request: GatewayRequest, client: AuthorizedClient, downstream: Downstream
    ) -> asyncio.Task[None] | None:
        context = self.open_context(request.method, request.path, request.headers)
        context.key_id = client.key_id
        try:
            self._serve(context, request, client, downstream)
        except ModelNotServed:
            retry = self._retry_after_refresh(context, request, client, downstream)
            return asyncio.get_running_loop().create_task(retry)
        except Exception as error:
            context.fail(error, downstream)
        return None

    async def _retry_after_refresh(
        self,
        context: RequestContext,
        request: GatewayRequest,
        client: AuthorizedClient,
        downstream: Downstream,
    ) -> None:
        # An unknown name may have been deployed since the routes were loaded.
        try:
            await self.routes.refresh_for_miss()
            self._serve(context, request, client, downstream)
        except Exception as error:
            context.fail(error, downstream)

    def _serve(
        self,
        context: RequestContext,
        request: GatewayRequest,
        client: AuthorizedClient,
        downstream: Downstream,
    ) -> None:
        path, method = request.path, request.method
        if path in ENGINE_PATHS:
            if method != "POST":
                raise MethodNotAllowed(path, method, "POST")
            self._generate(context, request, client, downstream)
        elif path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed(path, method, "GET, HEAD")
            models = self._view_models(path.removeprefix(MODELS_PATH).removeprefix("/"), client)
            context.start_response(200)
            context.close()
            headers = [*JSON_HEADERS, (b"x-request-id", context.request_id.encode())]
            downstream.respond(200, headers, json.dumps(models, ensure_ascii=False).encode())
        else:
            raise UnknownUrl(f"{method} {path} does not exist.")

    def _view_models(self, name: str, client: AuthorizedClient) -> dict[str, Any]:
        """Return one model in OpenAI's shape, or the list of those that the key may use."""
        if name:
            check_model(name, client)
            return self._view_model(self._find(name, client))
        routes = [route for route in self.routes.all() if client.may_use(route.name)]
        return {"object": "list", "data": [self._view_model(route) for route in routes]}

    def _view_model(self, route: Route) -> dict[str, Any]:
        """Return a route as OpenAI's model object, with the details that its engine reports."""
        created = int(route.created_at.timestamp())
        details = self.upstreams.details.view(route, self.routes.all())
        return {
            "id": route.name,
            "object": "model",
            "created": created,
            "owned_by": route.owned_by,
            **details,
        }

    def _generate(
        self,
        context: RequestContext,
        request: GatewayRequest,
        client: AuthorizedClient,
        downstream: Downstream,
    ) -> None:
        content = request.body
        if b"content-encoding" in request.headers:
            content = unpack_body(request.headers[b"content-encoding"], content)
        body = parse_request_body(request.path, content, self.limits)
        check_model(body.model, client)
        route = self._find(body.model, client)
        task = EMBED if request.path == EMBEDDINGS_PATH else GENERATE
        if not route.serves(task):
            raise TaskNotServed(route.name, request.path, embeds=task == GENERATE)
        context.model = route.name
        if client.has_limits:
            self._admit(context, client)
        extra_headers = b"x-request-id: %b\r\n" % context.request_id.encode()
        for name in FORWARDED_HEADERS:
            if name in request.headers:
                extra_headers += b"%b: %b\r\n" % (name, request.headers[name])
        forwarded = self.upstreams, context, route, body, extra_headers, downstream
        if self.store is not None and needs_store(context.path, body, route):
            StoredRequest(*forwarded, self.store, client.key_id).start()
        elif self.store is None and body.previous_response_id is not None:
            raise InvalidRequest(NO_STORE, "previous_response_id")
        else:
            ProxiedRequest(*forwarded).start()

    def _admit(self, context: RequestContext, client: AuthorizedClient) -> None:
        """Count the request against the limits of its key, or raise the error of one that is reached."""
        tokens = self.upstreams.tokens
        try:
            if client.tokens_per_day is not None:
                # With the requests that have ended since the last flush.
                self.recorder.flush()
                tokens.check(client)
            context.release_limits = self.rate_limits.acquire(client)
        finally:
            context.limit_headers = make_limit_headers(client, self.rate_limits, tokens)

    def _find(self, name: str, client: AuthorizedClient) -> Route:
        route = self.routes.find(name)
        if route is None:
            names = [known.name for known in self.routes.all() if client.may_use(known.name)]
            raise ModelNotServed(name, names)
        if route.not_ready is not None:
            raise ModelNotReady(name, route.not_ready)
        return route
