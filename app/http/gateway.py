"""The gateway inside this service: its route table and its keys come from SQL, each at most a second old."""

import asyncio
import logging
import time
from collections.abc import Collection
from typing import Any

from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app.deployments import lifecycle
from app.http import auth
from app.http.errors import HttpError, Unauthorized
from app.routing_table import service as routes
from app.routing_table.schemas import RouteTargetView
from app.settings import get_settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, Scope
from serving.gateway.downstream import ClientIdentity
from serving.gateway.gateway import Gateway
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.mounted.openapi import components, paths
from serving.gateway.rate_limits import AuthorizedClient
from serving.gateway.routes import CachedRoutingTable, Route, Target
from serving.http.errors import EngineUnavailable, InvalidApiKey, PermissionDenied

WAKE_POLL_SECONDS = 0.3
RETRY_AFTER_SECONDS = 5

logger = logging.getLogger(__name__)


def create_gateway() -> AsgiGateway:
    """The gateway over the deployments and aliases of the database."""
    return AsgiGateway(Gateway(SqlRoutingTable(), authorize_client))


class GatewayMiddleware:
    """Sends /v1 to the gateway and everything else on.

    Every token of a generation passes through here, so nothing else of the API stands in its way.
    """

    def __init__(self, app: ASGIApp, gateway: AsgiGateway) -> None:
        self.app = app
        self.gateway = gateway

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        await self.gateway(scope, receive, send)


async def authorize_client(sender: ClientIdentity) -> AuthorizedClient:
    """Ask for the scope `inference`; raises InvalidApiKey and Forbidden."""
    host = sender.host.decode("latin-1")
    try:
        caller = await run_in_threadpool(auth.authenticate, sender.token(), host, sender.address)
        caller.require(Scope.inference)
    except Unauthorized as error:
        raise InvalidApiKey(_whole(error)) from error
    except HttpError as error:
        raise PermissionDenied(_whole(error)) from error
    return AuthorizedClient(caller.key_id, caller.requests_per_minute, caller.concurrent_requests)


class SqlRoutingTable(CachedRoutingTable):
    """Routes of deployments and aliases."""

    load_errors = (OperationalError,)

    def __init__(self) -> None:
        super().__init__()
        self._waking: dict[str, asyncio.Task[Target]] = {}

    async def load(self) -> list[Route]:
        return await run_in_threadpool(_read_routes)

    async def wake(self, target: Target) -> Target:
        """The target once its deployment is up; raises EngineUnavailable."""
        waking = self._waking.get(target.deployment_id)
        if waking is None:
            # Those who ask together wait together, and the last may leave before it is there.
            waking = asyncio.create_task(self._wake(target))
            waking.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._waking[target.deployment_id] = waking
        return await asyncio.shield(waking)

    async def record_use(self, deployment_ids: Collection[str]) -> None:
        if not deployment_ids:
            return
        try:
            await run_in_threadpool(_note_use, sorted(deployment_ids))
        except OperationalError as error:
            logger.warning("cannot note which deployments are in use: %s", error.orig)

    async def _wake(self, target: Target) -> Target:
        seconds = get_settings().wake_timeout_seconds
        deadline = time.monotonic() + seconds
        try:
            while (woken := await run_in_threadpool(_woken, target)) is None:
                if time.monotonic() > deadline:
                    raise _unavailable(f"The deployment sleeps and was not up within {seconds:g} s.")
                await asyncio.sleep(WAKE_POLL_SECONDS)
        except OperationalError as error:
            raise _unavailable("The deployment sleeps, and the database cannot be reached.") from error
        finally:
            del self._waking[target.deployment_id]
        self._fresh_until = 0.0
        return woken


def add_gateway_paths(schema: dict[str, Any]) -> None:
    """Show the gateway's routes on the same page, under the same `Authorize`."""
    for path, operations in paths().items():
        schema["paths"][path] = {
            verb: operation | {"security": [{"HTTPBearer": []}]} for verb, operation in operations.items()
        }
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components()["schemas"])


def _read_routes() -> list[Route]:
    with read_session() as session:
        table = routes.list_routes(session)
    return [Route(row.name, tuple(map(_target, row.targets)), row.created_at) for row in table]


def _target(shown: RouteTargetView) -> Target:
    return Target(**shown.model_dump())


def _woken(target: Target) -> Target | None:
    """The target if its deployment is up, else None once it is asked for; raises EngineUnavailable."""
    with read_session() as session:
        deployment = session.get(Deployment, target.deployment_id)
    if deployment is None:
        raise _unavailable("None of the deployments that this alias leads to is there any more; move it.")
    if deployment.status is DeploymentStatus.ready:
        return _target(routes.view_target(deployment, target.share))
    if deployment.status not in lifecycle.LIVE:
        why = f": {deployment.error['message']}" if deployment.error else "."
        raise _unavailable(f"The deployment {deployment.name!r} is {deployment.status}{why}")
    if deployment.status is DeploymentStatus.asleep:
        with transaction() as session:
            lifecycle.wake(session, deployment.id)
    return None


def _note_use(deployment_ids: list[str]) -> None:
    with transaction() as session:
        routes.record_use(session, deployment_ids)


def _unavailable(message: str) -> EngineUnavailable:
    return EngineUnavailable(message, RETRY_AFTER_SECONDS)


def _whole(error: HttpError) -> str:
    return f"{error.message} {error.hint or ''}".strip()
