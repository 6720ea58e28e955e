"""The gateway as part of the API: its routing table and API keys come from SQL, at most a second old."""

import asyncio
import logging
import sys
import time
from collections.abc import Collection
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app.completions.answer_store import SqlAnswerStore
from app.deployments import lifecycle
from app.deployments.waiting import explain_unclaimed
from app.http import auth
from app.http.errors import HttpError, Unauthorized
from app.keys import token_use
from app.routing_table import service as routes
from app.routing_table import traffic
from app.routing_table.schemas import RouteTargetView
from app.scheduling.incidents import describe_error
from app.settings import get_settings
from app.storage.database import DATABASE_UNAVAILABLE, read_session, transaction
from app.tables import Deployment, DeploymentStatus, Scope
from app.workers import service as workers
from serving.gateway.downstream import ClientIdentity
from serving.gateway.gateway import ENGINE_PATHS, MODELS_PATH, Gateway
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.mounted.openapi import components, paths
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.gateway.routes import CachedRoutingTable, Route, Target
from serving.http.cross_site import OriginPolicy
from serving.http.errors import EngineUnavailable, InvalidApiKey, KeyCheckUnavailable, PermissionDenied

WAKE_POLL_SECONDS = 0.3
RETRY_AFTER_SECONDS = 5
CHATS_PATH = "/v1/chat/completions"

logger = logging.getLogger(__name__)


def create_gateway(origins: OriginPolicy, limits: RateLimits) -> AsgiGateway:
    """Create the gateway for the deployments and aliases of the database."""
    store = SqlAnswerStore()
    gateway = Gateway(SqlRoutingTable(), authorize_client, rate_limits=limits, origins=origins, store=store)
    return AsgiGateway(gateway)


class GatewayMiddleware:
    """A middleware that passes generation and the list of models to the gateway, and the rest to the API.

    It is the outermost middleware, so that no other one slows down the tokens of a stream.
    """

    def __init__(self, app: ASGIApp, gateway: AsgiGateway) -> None:
        self.app = app
        # The gateway has a limit of its own, and responds with OpenAI's error object.
        self.gateway = RequestBodyLimitMiddleware(gateway, sys.maxsize)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_for_gateway(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        await self.gateway(scope, receive, send)


def _is_for_gateway(method: str, path: str) -> bool:
    if path in ENGINE_PATHS:
        # Stored chats are listed at the path that creates them.
        return not (path == CHATS_PATH and method in ("GET", "HEAD"))
    is_of_models = path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/")
    return is_of_models and method != "DELETE"


async def authorize_client(client: ClientIdentity) -> AuthorizedClient:
    """Require the scope `inference`; raise InvalidApiKey or PermissionDenied."""
    try:
        return await run_in_threadpool(_authenticate, client)
    except (OSError, *DATABASE_UNAVAILABLE) as error:
        logger.warning("cannot check API keys: %s", describe_error(error))
        raise KeyCheckUnavailable(RETRY_AFTER_SECONDS) from error
    except Unauthorized as error:
        raise InvalidApiKey(_message_with_hint(error)) from error
    except HttpError as error:
        raise PermissionDenied(_message_with_hint(error)) from error


def authorize_caller(caller: auth.Caller) -> AuthorizedClient:
    """Return a caller as a client of the gateway; raise Forbidden without the scope `inference`."""
    caller.require(Scope.inference)
    tokens_today = 0
    if caller.tokens_per_day is not None:
        with read_session() as session:
            counts = token_use.count_tokens_today(session, [caller.key_id])
        tokens_today = counts.get(caller.key_id, 0)
    return AuthorizedClient(
        caller.key_id,
        caller.requests_per_minute,
        caller.concurrent_requests,
        caller.tokens_per_day,
        tokens_today,
        caller.models,
    )


def _authenticate(client: ClientIdentity) -> AuthorizedClient:
    return authorize_caller(auth.authenticate(client.token(), client.host, client.address, client.forwarded))


class SqlRoutingTable(CachedRoutingTable):
    """The routing table of the deployments and aliases in the database."""

    load_errors = (OSError, *DATABASE_UNAVAILABLE)

    def __init__(self) -> None:
        super().__init__()
        self._waking: dict[str, asyncio.Task[Target]] = {}

    async def load(self) -> list[Route]:
        return await run_in_threadpool(_read_routes)

    async def wake(self, target: Target) -> Target:
        """Return the target once its deployment is ready; raise EngineUnavailable if it takes too long."""
        waking = self._waking.get(target.deployment_id)
        if waking is None:
            # Concurrent requests share one task, which continues if all of their clients disconnect.
            waking = asyncio.create_task(self._wake(target))
            waking.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._waking[target.deployment_id] = waking
        return await asyncio.shield(waking)

    async def record_use(self, deployment_ids: Collection[str]) -> None:
        if not deployment_ids:
            return
        try:
            await run_in_threadpool(_record_use, sorted(deployment_ids))
        except DATABASE_UNAVAILABLE as error:
            logger.warning("cannot record the use of deployments: %s", describe_error(error))

    async def record_traffic(self, reporter: str, rows: list[dict[str, Any]]) -> bool:
        try:
            await run_in_threadpool(_record_traffic, reporter, rows)
        except DATABASE_UNAVAILABLE as error:
            logger.warning("cannot record the traffic of aliases: %s", describe_error(error))
            return False
        return True

    async def record_tokens(self, reporter: str, rows: list[dict[str, Any]]) -> dict[str, int] | None:
        try:
            return await run_in_threadpool(_record_tokens, reporter, rows)
        except DATABASE_UNAVAILABLE as error:
            logger.warning("cannot record the tokens of keys: %s", describe_error(error))
            return None

    async def _wake(self, target: Target) -> Target:
        seconds = get_settings().wake_timeout_seconds
        deadline = time.monotonic() + seconds
        try:
            found = await run_in_threadpool(_wake_or_get, target, True)
            while isinstance(found, DeploymentStatus):
                if time.monotonic() > deadline:
                    raise await run_in_threadpool(_explain_timeout, target.deployment_id, seconds)
                await asyncio.sleep(WAKE_POLL_SECONDS)
                found = await run_in_threadpool(_wake_or_get, target, False)
        except (OSError, *DATABASE_UNAVAILABLE) as error:
            raise _unavailable("The deployment is asleep, and the database is unavailable.") from error
        finally:
            del self._waking[target.deployment_id]
        self._fresh_until = 0.0
        return found


def add_gateway_paths(schema: dict[str, Any], prefix: str = "") -> None:
    """Add the gateway's paths below `prefix` to a document, with the authorization of its other paths."""
    for path, operations in paths().items():
        added = {verb: item | {"security": [{"HTTPBearer": []}]} for verb, item in operations.items()}
        schema["paths"].setdefault(path.removeprefix(prefix), {}).update(added)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components()["schemas"])


def _read_routes() -> list[Route]:
    with read_session() as session:
        table = routes.list_routes(session)
    return [
        Route(
            row.name,
            tuple(map(_to_target, row.targets)),
            row.created_at,
            row.not_ready,
            row.owned_by,
            row.measured_version,
        )
        for row in table
    ]


def _to_target(view: RouteTargetView) -> Target:
    return Target(**view.model_dump())


def _wake_or_get(target: Target, may_wake: bool) -> Target | DeploymentStatus:
    """Return the target if its deployment is ready, else its status; wake the deployment if it is asleep.

    Without `may_wake`, one that is asleep has been woken before, and has failed since or was not used.
    """
    with read_session() as session:
        deployment = session.get(Deployment, target.deployment_id)
        missing = deployment and workers.explain_missing_deployment_worker(
            session, deployment.queue, deployment.engine
        )
    if deployment is None:
        raise _unavailable("This alias routes to no existing deployment; move it to one that is ready.")
    if deployment.is_ready:
        return _to_target(routes.view_target(deployment, target.share))
    if deployment.status not in lifecycle.LIVE:
        reason = f": {deployment.error['message']}" if deployment.error else "."
        raise _unavailable(f"The deployment {deployment.name!r} is {deployment.status}{reason}")
    if deployment.status is DeploymentStatus.asleep:
        if not may_wake and deployment.error is not None:
            raise _unavailable(
                f"The deployment {deployment.name!r} did not start: {deployment.error['message']}"
            )
        with transaction() as session:
            lifecycle.wake(session, deployment.id)
    if missing is not None and not deployment.current_status.held:
        # It stays queued, for a worker that is started later.
        raise _unavailable(f"The deployment {deployment.name!r} cannot start: {missing}")
    return deployment.current_status


def _explain_timeout(deployment_id: str, seconds: float) -> EngineUnavailable:
    with read_session() as session:
        deployment = session.get(Deployment, deployment_id)
        status = deployment.current_status if deployment is not None else "gone"
        message = f"The deployment is {status}, and was not ready within {seconds:g} s."
        if deployment is not None and deployment.status is DeploymentStatus.queued:
            message = f"{message} {explain_unclaimed(session, deployment)}"
    return _unavailable(message)


def _record_use(deployment_ids: list[str]) -> None:
    with transaction() as session:
        routes.record_use(session, deployment_ids)


def _record_tokens(reporter: str, rows: list[dict[str, Any]]) -> dict[str, int]:
    with transaction() as session:
        return token_use.record_tokens(session, reporter, rows)


def _record_traffic(reporter: str, rows: list[dict[str, Any]]) -> None:
    with transaction() as session:
        traffic.record_traffic(session, reporter, rows)


def _unavailable(message: str) -> EngineUnavailable:
    return EngineUnavailable(message, RETRY_AFTER_SECONDS)


def _message_with_hint(error: HttpError) -> str:
    return f"{error.message} {error.hint or ''}".strip()
