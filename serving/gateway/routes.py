"""Which engine answers for which model name."""

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp

REFRESH_SECONDS = 1.0
API_TIMEOUT_SECONDS = 5.0
logger = logging.getLogger("tunesmith.gateway.routes")


@dataclass(frozen=True)
class Route:
    """A model name, the engine that answers for it, and the name by which that engine knows it.

    `base_url` is the engine's root, without /v1: `http://127.0.0.1:8001`.
    """

    name: str
    base_url: str
    upstream_model: str
    created_at: datetime


class RouteTable(Protocol):
    """Where the gateway looks names up, once for each request; a cache may be a second old at most."""

    async def find(self, name: str) -> Route | None:
        """The route of a name, or None."""

    async def all(self) -> list[Route]:
        """Every route that is ready."""


class StaticRoutes:
    """Routes that never change."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = {route.name: route for route in routes}

    @classmethod
    def from_file(cls, path: Path) -> "StaticRoutes":
        """Read `[{"name": …, "base_url": …, "upstream_model"?: …, "created_at"?: …}]`; raises ValueError."""
        try:
            return cls([read_route(row) for row in json.loads(path.read_text())])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as fault:
            raise ValueError(f"{path} is not a list of routes with name and base_url: {fault!r}.") from fault

    async def find(self, name: str) -> Route | None:
        return self.routes.get(name)

    async def all(self) -> list[Route]:
        return list(self.routes.values())


@dataclass
class ApiRoutes:
    """Routes of the deployments that the service's API lists as ready, read again when a second old.

    While the API cannot be reached the last known table stays in use: an engine that has gone refuses
    connections by itself, and one that lives should go on answering.
    """

    api_url: str
    api_key: str | None = None
    session: aiohttp.ClientSession | None = None
    known: StaticRoutes = field(default_factory=lambda: StaticRoutes([]))
    read_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def find(self, name: str) -> Route | None:
        await self._refresh()
        return await self.known.find(name)

    async def all(self) -> list[Route]:
        await self._refresh()
        return await self.known.all()

    async def aclose(self) -> None:
        """Close the connections to the API."""
        if self.session is not None:
            await self.session.close()

    async def _refresh(self) -> None:
        async with self.lock:
            if time.monotonic() - self.read_at < REFRESH_SECONDS:
                return
            try:
                self.known = StaticRoutes(await self._read())
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as fault:
                logger.warning(
                    "The deployments of %s cannot be read, the last known stay: %r", self.api_url, fault
                )
            self.read_at = time.monotonic()

    async def _read(self) -> list[Route]:
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=API_TIMEOUT_SECONDS))
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        url = f"{self.api_url.rstrip('/')}/api/v1/deployments"
        rows: list[dict[str, Any]] = []
        params = {"status": "ready"}
        while True:
            async with self.session.get(url, headers=headers, params=params) as response:
                response.raise_for_status()
                page = await response.json()
            rows += page["items"]
            if page["next"] is None:
                return [read_deployment(row) for row in rows]
            params["after"] = str(page["next"])


def read_route(row: dict[str, Any]) -> Route:
    """A route from a routes file; the engine's name for the model and the date have defaults."""
    created = datetime.fromisoformat(row["created_at"]) if "created_at" in row else datetime.now(UTC)
    return Route(row["name"], row["base_url"].rstrip("/"), row.get("upstream_model", row["name"]), created)


def read_deployment(row: dict[str, Any]) -> Route:
    """A route from a deployment of the API, whose engine serves the model under the deployment's name."""
    created = datetime.fromisoformat(row["created_at"])
    return Route(row["name"], row["address"].rstrip("/"), row["name"], created)
