"""Which engines answer for which model name."""

import asyncio
import json
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from serving.http.errors import EngineUnavailable

REFRESH_SECONDS = 1.0
# Unknown names make the routes be read again no more often than this.
MISSED_SECONDS = 0.2
logger = logging.getLogger("tunesmith.gateway.routes")


@dataclass(frozen=True)
class Target:
    """An engine that answers for a route, and the name by which that engine knows the model.

    `base_url` is the engine's root, without /v1: `http://127.0.0.1:8001`; empty means that the deployment is
    asleep and has to be woken. `share` is its part of the route's requests, as a weight.
    """

    deployment_id: str
    base_url: str
    upstream_model: str
    share: float = 1.0


@dataclass(frozen=True)
class Route:
    """A model name and who answers for it: a deployment is one target, an alias is one or several."""

    name: str
    targets: tuple[Target, ...]
    created_at: datetime

    def choose(self, avoided: Collection[Target] = ()) -> Target | None:
        """A target by share, of those that are not avoided; None when none is left."""
        if len(self.targets) == 1 and not avoided:
            return self.targets[0]
        left = [target for target in self.targets if target.share > 0 and target not in avoided]
        return random.choices(left, [target.share for target in left])[0] if left else None  # noqa: S311


class RouteTable(Protocol):
    """Where the gateway looks names up.

    What is known lies in memory, so that a request waits for nothing while the table is fresh; before a
    request is answered from a stale one, `refresh` is awaited.
    """

    def fresh(self) -> bool:
        """Whether what is known may be used as it stands."""

    async def refresh(self) -> None:
        """Learn what has changed; raises EngineUnavailable if nothing has ever been learnt."""

    async def look_again(self) -> None:
        """Learn what has changed just now, for a name that is not known."""

    def find(self, name: str) -> Route | None:
        """The route of a name, or None."""

    def all(self) -> Collection[Route]:
        """Every route."""

    async def wake(self, target: Target) -> Target:
        """Ask for a sleeping deployment and wait for it; raises EngineUnavailable when it takes too long."""

    async def used(self, deployment_ids: Collection[str]) -> None:
        """Note that these have been asked lately; the gateway tells it once in a few seconds."""


class StaticRoutes:
    """Routes that never change."""

    def __init__(self, routes: Collection[Route]) -> None:
        self.routes = {route.name: route for route in routes}

    @classmethod
    def from_file(cls, path: Path) -> "StaticRoutes":
        """Read a JSON list of routes as `read_route` knows them; raises ValueError."""
        try:
            return cls([parse_route(row) for row in json.loads(path.read_text())])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as fault:
            raise ValueError(
                f"{path} is not a list of routes with name and base_url or targets: {fault!r}."
            ) from fault

    def fresh(self) -> bool:
        return True

    async def refresh(self) -> None:
        pass

    async def look_again(self) -> None:
        pass

    def find(self, name: str) -> Route | None:
        return self.routes.get(name)

    def all(self) -> Collection[Route]:
        return self.routes.values()

    async def wake(self, target: Target) -> Target:
        raise EngineUnavailable(f"The deployment {target.deployment_id!r} is asleep.")

    async def used(self, deployment_ids: Collection[str]) -> None:
        pass


class CachedRoutes(StaticRoutes, ABC):
    """Routes that are read again when a second old.

    While they cannot be read the last known stay in use: an engine that has gone refuses connections by
    itself, and one that lives should go on answering.
    """

    unreadable: tuple[type[Exception], ...] = (OSError,)

    def __init__(self) -> None:
        super().__init__([])
        self._fresh_until = 0.0
        self._ever_read = False
        self._lock = asyncio.Lock()

    @abstractmethod
    async def read(self) -> list[Route]:
        """Every route as it is now; raises one of `unreadable`."""

    def fresh(self) -> bool:
        return time.monotonic() < self._fresh_until

    async def refresh(self) -> None:
        async with self._lock:
            if self.fresh():
                return
            try:
                self.routes = {route.name: route for route in await self.read()}
                self._ever_read = True
            except self.unreadable as fault:
                logger.warning("The routes cannot be read, the last known stay: %r", fault)
            if not self._ever_read:
                raise EngineUnavailable("The deployments cannot be read at the moment; try again soon.")
            self._fresh_until = time.monotonic() + REFRESH_SECONDS

    async def look_again(self) -> None:
        if self._fresh_until - time.monotonic() < REFRESH_SECONDS - MISSED_SECONDS:
            self._fresh_until = 0.0
            await self.refresh()


def parse_route(row: dict[str, Any]) -> Route:
    """A route of a routes file.

    `{"name": …, "base_url": …, "upstream_model"?: …, "created_at"?: …}`, or with
    `"targets": [{"base_url": …, "upstream_model"?: …, "share"?: …}, …]` in place of the address.
    """
    created = datetime.fromisoformat(row["created_at"]) if "created_at" in row else datetime.now(UTC)
    targets = tuple(read_target(row["name"], target) for target in row.get("targets", [row]))
    if not any(target.share > 0 for target in targets):
        raise ValueError(f"The route {row['name']!r} needs a target with a share above 0.")
    return Route(row["name"], targets, created)


def read_target(name: str, row: dict[str, Any]) -> Target:
    """A target of a routes file; the engine's name for the model is the route's unless it says otherwise."""
    share = float(row.get("share", 1))
    if share < 0:
        raise ValueError(f"A share of the route {name!r} is {share}; shares are 0 or more.")
    base_url = row["base_url"].rstrip("/")
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"The route {name!r} has the base_url {base_url!r}, which is not an http URL.")
    return Target(row.get("deployment_id", name), base_url, row.get("upstream_model", name), share)
