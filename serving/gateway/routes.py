"""Routing tables: which engines serve which model name."""

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
# Requests for unknown names load the table no more often than this.
MISS_REFRESH_SECONDS = 0.2
# The values of EngineTask, whose package imports pydantic: a gateway starts without it.
TASKS = GENERATE, EMBED = "generate", "embed"
ROUTES_UNAVAILABLE = "The list of deployments is unavailable. Try again soon."
logger = logging.getLogger("tunesmith.gateway.routes")


@dataclass(frozen=True)
class Target:
    """An engine of a route, and the engine's name of the model.

    `base_url` is the engine's root without /v1, such as `http://127.0.0.1:8001`. It is empty while the
    deployment is asleep. `share` is the target's weight among the targets of the route. Answers are stored
    for `store_days`, by a gateway that has a store; 0 stores none. `task` is what the engine computes, None
    where that is unknown.
    """

    deployment_id: str
    base_url: str
    upstream_model: str
    share: float = 1.0
    store_days: float = 0.0
    task: str | None = None


@dataclass(frozen=True)
class Route:
    """A model name and its targets: one for a deployment, one or several for an alias.

    `not_ready` is the status of a deployment that starts for the first time, which has no target yet.
    `owned_by` is the name of the organization.
    `measured_version` is the version of an alias whose requests are counted for a promotion.
    """

    name: str
    targets: tuple[Target, ...]
    created_at: datetime
    not_ready: str | None = None
    owned_by: str = "tunesmith"
    measured_version: int | None = None

    @property
    def stores_answers(self) -> bool:
        """Whether a target has a time of storage."""
        return any(target.store_days for target in self.targets)

    def serves(self, task: str) -> bool:
        """Return whether a target may compute what a request asks for."""
        return any(target.task in (None, task) for target in self.targets)

    def choose(self, avoided: Collection[Target] = ()) -> Target | None:
        """Return a random target by share, except those to avoid, or None if none is left."""
        if len(self.targets) == 1 and not avoided:
            return self.targets[0]
        left = [target for target in self.targets if target.share > 0 and target not in avoided]
        return random.choices(left, [target.share for target in left])[0] if left else None  # noqa: S311


class RoutingTable(Protocol):
    """The table that maps model names to engines.

    Routes are kept in memory, so that requests need not wait while the table is fresh. The gateway awaits
    `refresh` before it uses a stale one.
    """

    def is_fresh(self) -> bool:
        """Return True if the routes need no refresh."""

    async def refresh(self) -> None:
        """Load the routes; raises EngineUnavailable if they were never loaded."""

    async def refresh_for_miss(self) -> None:
        """Load the routes again because a name was not found.

        Raises EngineUnavailable if they cannot be loaded: whether the name exists is then unknown.
        """

    def find(self, name: str) -> Route | None:
        """Return the route of a name, or None."""

    def all(self) -> Collection[Route]:
        """Return every route that has a target."""

    async def wake(self, target: Target) -> Target:
        """Wake a sleeping deployment and wait for it; raises EngineUnavailable after a timeout."""

    async def record_use(self, deployment_ids: Collection[str]) -> None:
        """Record that these deployments received requests; called once in a few seconds."""

    async def record_traffic(self, reporter: str, rows: list[dict[str, Any]]) -> bool:
        """Record what a gateway process has counted since it started; return False to get it again."""

    async def record_tokens(self, reporter: str, rows: list[dict[str, Any]]) -> dict[str, int] | None:
        """Record the tokens of keys that a gateway process has counted since it started.

        Returns the totals of these keys today, over all gateways; None to get the counts again.
        """


class StaticRoutingTable:
    """Routes that never change."""

    def __init__(self, routes: Collection[Route]) -> None:
        self.routes = {route.name: route for route in routes}

    @classmethod
    def from_file(cls, path: Path) -> "StaticRoutingTable":
        """Read a JSON list of routes in the form that `parse_route` accepts; raises ValueError."""
        try:
            return cls([parse_route(row) for row in json.loads(path.read_text())])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"It must be a JSON list of routes, each with name and base_url or targets: {error!r}."
            ) from error

    def is_fresh(self) -> bool:
        return True

    async def refresh(self) -> None:
        pass

    async def refresh_for_miss(self) -> None:
        pass

    def find(self, name: str) -> Route | None:
        return self.routes.get(name)

    def all(self) -> Collection[Route]:
        return [route for route in self.routes.values() if route.not_ready is None]

    async def wake(self, target: Target) -> Target:
        raise EngineUnavailable(f"The deployment {target.deployment_id!r} is asleep.")

    async def record_use(self, deployment_ids: Collection[str]) -> None:
        pass

    async def record_traffic(self, reporter: str, rows: list[dict[str, Any]]) -> bool:
        return True

    async def record_tokens(self, reporter: str, rows: list[dict[str, Any]]) -> dict[str, int] | None:
        return {}


class CachedRoutingTable(StaticRoutingTable, ABC):
    """Routes that are loaded again when they are a second old.

    While they cannot be loaded, the last known routes stay in use: a stopped engine refuses connections
    anyway, and a running one should continue to serve.
    """

    load_errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self) -> None:
        super().__init__([])
        self._fresh_until = 0.0
        self._load_started_at = -MISS_REFRESH_SECONDS
        self._loaded = False
        self._lock = asyncio.Lock()

    @abstractmethod
    async def load(self) -> list[Route]:
        """Return every current route; raises one of `load_errors`."""

    def is_fresh(self) -> bool:
        return time.monotonic() < self._fresh_until

    async def refresh(self) -> None:
        async with self._lock:
            if not self.is_fresh():
                await self._try_to_load()

    async def refresh_for_miss(self) -> None:
        missed_at = time.monotonic()
        async with self._lock:
            # Only a load that begins after the miss is certain to find a name that exists by now.
            if self._load_started_at < missed_at:
                await asyncio.sleep(self._load_started_at + MISS_REFRESH_SECONDS - time.monotonic())
                if not await self._try_to_load():
                    raise EngineUnavailable(ROUTES_UNAVAILABLE)

    async def _try_to_load(self) -> bool:
        """Load the routes, or keep the last known ones; return whether they were loaded."""
        self._load_started_at = time.monotonic()
        loaded = True
        try:
            self.routes = {route.name: route for route in await self.load()}
            self._loaded = True
        except self.load_errors as error:
            if not self._loaded:
                raise EngineUnavailable(ROUTES_UNAVAILABLE) from error
            logger.warning("cannot load the routes, the last known ones stay in use: %r", error)
            loaded = False
        self._fresh_until = time.monotonic() + REFRESH_SECONDS
        return loaded


def parse_route(row: dict[str, Any]) -> Route:
    """Parse a route of a routes file.

    `{"name": …, "base_url": …, "upstream_model"?: …, "task"?: …, "created_at"?: …}`, or with
    `"targets": [{"base_url": …, "upstream_model"?: …, "task"?: …, "share"?: …}, …]` in place of the address.
    """
    created = datetime.fromisoformat(row["created_at"]) if "created_at" in row else datetime.now(UTC)
    targets = tuple(_parse_target(row["name"], target) for target in row.get("targets", [row]))
    if not any(target.share > 0 for target in targets):
        raise ValueError(f"The route {row['name']!r} needs a target with a share above 0.")
    return Route(row["name"], targets, created)


def _parse_target(name: str, row: dict[str, Any]) -> Target:
    share = float(row.get("share", 1))
    if share < 0:
        raise ValueError(f"The route {name!r} has a share of {share:g}. A share must be 0 or more.")
    base_url = row["base_url"].rstrip("/")
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"The route {name!r} has the base_url {base_url!r}, which is not an http URL.")
    task = row.get("task")
    if task not in (None, *TASKS):
        raise ValueError(f"The route {name!r} has the task {task!r}; there are {' and '.join(TASKS)}.")
    upstream_model = row.get("upstream_model", name)
    return Target(row.get("deployment_id", name), base_url, upstream_model, share, task=task)
