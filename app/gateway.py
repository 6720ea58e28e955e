"""The gateway inside this service: its route table and its keys come from SQL, each at most a second old."""

import time
from contextvars import ContextVar
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
from serving.gateway.app import Gateway
from serving.gateway.errors import Forbidden, InvalidApiKey
from serving.gateway.openapi import components, paths
from serving.gateway.routes import REFRESH_SECONDS, CachedRoutes, Route, Target

MOST_CACHED_KEYS = 1000

# The gateway hands on the key alone, and a service without keys looks at where the request comes from.
_sender: ContextVar[tuple[str, str]] = ContextVar("sender", default=("", ""))


def make_gateway() -> Gateway:
    """The gateway over the ready deployments of the database."""
    return Gateway(SqlRoutes(), Authorize())


class BesideGateway:
    """Sends /v1 to the gateway and everything else on.

    Every token of a generation passes through here, so nothing else of the API stands in its way.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app = app
        self.gateway = gateway

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        _sender.set((host, scope["client"][0] if scope.get("client") else ""))
        await self.gateway(scope, receive, send)


class Authorize:
    """Asks for the scope `inference`; who was let in is let in again for a second."""

    def __init__(self) -> None:
        self._until: dict[tuple[str | None, str, str], float] = {}

    async def __call__(self, token: str | None) -> None:
        sender = (token, *_sender.get())
        if time.monotonic() < self._until.get(sender, 0):
            return
        try:
            caller = await run_in_threadpool(auth.identify, *sender)
            caller.require(Scope.inference)
        except Unauthorized as error:
            raise InvalidApiKey(_whole(error)) from error
        except AppError as error:
            raise Forbidden(_whole(error)) from error
        if len(self._until) >= MOST_CACHED_KEYS:
            self._until.clear()
        self._until[sender] = time.monotonic() + REFRESH_SECONDS


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
