"""The gateway inside this service: its route table and its keys come from SQL, each at most a second old."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlmodel import col
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app import auth
from app.db import reading
from app.errors import AppError, Unauthorized
from app.tables import Deployment, DeploymentStatus, Scope
from serving.gateway.asgi import AsgiGateway
from serving.gateway.errors import Forbidden, InvalidApiKey
from serving.gateway.gateway import Caller, Gateway, Sender
from serving.gateway.openapi import components, paths
from serving.gateway.routes import CachedRoutes, Route, Target


def make_gateway() -> AsgiGateway:
    """The gateway over the ready deployments of the database."""
    return AsgiGateway(Gateway(SqlRoutes(), authorize))


class BesideGateway:
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


async def authorize(sender: Sender) -> Caller:
    """Ask for the scope `inference`; raises InvalidApiKey and Forbidden."""
    host = sender.host.decode("latin-1")
    try:
        caller = await run_in_threadpool(auth.identify, sender.token(), host, sender.address)
        caller.require(Scope.inference)
    except Unauthorized as error:
        raise InvalidApiKey(_whole(error)) from error
    except AppError as error:
        raise Forbidden(_whole(error)) from error
    return Caller(caller.key_id)


class SqlRoutes(CachedRoutes):
    """Routes of the ready deployments."""

    unreadable = (OperationalError,)

    async def read(self) -> list[Route]:
        return await run_in_threadpool(_ready)


def add_to_openapi(schema: dict[str, Any]) -> None:
    """Show the gateway's routes on the same page, under the same `Authorize`."""
    for path, operations in paths().items():
        schema["paths"][path] = {
            verb: operation | {"security": [{"HTTPBearer": []}]} for verb, operation in operations.items()
        }
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components()["schemas"])


def _ready() -> list[Route]:
    with reading() as session:
        ready = select(Deployment).where(
            col(Deployment.status) == DeploymentStatus.ready, col(Deployment.address).is_not(None)
        )
        return [_route(row) for row in session.scalars(ready)]


def _route(deployment: Deployment) -> Route:
    assert deployment.address is not None
    target = Target(deployment.id, deployment.address.rstrip("/"), deployment.name)
    return Route(deployment.name, (target,), deployment.created_at)


def _whole(error: AppError) -> str:
    return f"{error.message} {error.hint or ''}".strip()
