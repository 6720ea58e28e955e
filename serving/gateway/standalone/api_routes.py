"""Routes as the service's API lists them, for a gateway that stands alone."""

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from datetime import datetime
from typing import Any

from serving.gateway.routes import CachedRoutes, Route, Target
from serving.http.errors import EngineUnavailable

API_TIMEOUT_SECONDS = 5.0
WAKE_SECONDS = 60.0
WAKE_LOOK_SECONDS = 0.3
logger = logging.getLogger("tunesmith.gateway.routes")


class ApiRoutes(CachedRoutes):
    """Reads `GET /api/v1/routes` in a thread: once a second, a client of its own would be too much."""

    unreadable = (OSError, ValueError, KeyError, TypeError)

    def __init__(self, api_url: str, api_key: str | None = None) -> None:
        super().__init__()
        self.url = f"{api_url.rstrip('/')}/api/v1"
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def read(self) -> list[Route]:
        listed = await asyncio.to_thread(self._call, "/routes", None)
        return [read_listed(row) for row in listed["items"]]

    async def wake(self, target: Target) -> Target:
        """Ask for the deployment, and look until its route leads to an engine; raises EngineUnavailable."""
        deadline = time.monotonic() + WAKE_SECONDS
        path = f"/deployments/{target.deployment_id or 'none'}/wake"
        try:
            while time.monotonic() < deadline:
                woken = await asyncio.to_thread(self._call, path, {})
                if woken["status"] == "ready":
                    self._fresh_until = 0.0
                    address = woken["address"].rstrip("/")
                    return Target(target.deployment_id, address, woken["upstream_model"], target.share)
                await asyncio.sleep(WAKE_LOOK_SECONDS)
        except urllib.error.HTTPError as refused:
            raise EngineUnavailable("The deployment is not there any more.") from refused
        except OSError as fault:
            raise EngineUnavailable("The service that wakes deployments cannot be reached.") from fault
        raise EngineUnavailable(f"The deployment sleeps and was not up within {WAKE_SECONDS:.0f} s.", 5)

    async def used(self, deployment_ids: Collection[str]) -> None:
        if not deployment_ids:
            return
        try:
            await asyncio.to_thread(self._call, "/routes/use", {"deployment_ids": sorted(deployment_ids)})
        except OSError as fault:
            logger.warning("It cannot be told which deployments are in use: %r", fault)

    def _call(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310 — the operator's address
        with urllib.request.urlopen(request, timeout=API_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")


def read_listed(row: dict[str, Any]) -> Route:
    """A route as the API lists it."""
    targets = tuple(Target(**target) for target in row["targets"])
    return Route(row["name"], targets, datetime.fromisoformat(row["created_at"]))
