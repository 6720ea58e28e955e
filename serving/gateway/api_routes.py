"""Routes of the deployments that the service's API lists as ready."""

import asyncio
import json
import urllib.parse
import urllib.request
from datetime import datetime
from typing import Any

from serving.gateway.routes import CachedRoutes, Route, Target

API_TIMEOUT_SECONDS = 5.0


class ApiRoutes(CachedRoutes):
    """Reads `GET /api/v1/deployments` in a thread: once a second, a client of its own would be too much."""

    unreadable = (OSError, ValueError, KeyError, TypeError)

    def __init__(self, api_url: str, api_key: str | None = None) -> None:
        super().__init__()
        self.url = f"{api_url.rstrip('/')}/api/v1/deployments"
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def read(self) -> list[Route]:
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[Route]:
        rows: list[dict[str, Any]] = []
        query = {"status": "ready"}
        while True:
            url = f"{self.url}?{urllib.parse.urlencode(query)}"
            request = urllib.request.Request(url, headers=self.headers)  # noqa: S310 — the operator's address
            with urllib.request.urlopen(request, timeout=API_TIMEOUT_SECONDS) as answer:  # noqa: S310
                page = json.load(answer)
            rows += page["items"]
            if page["next"] is None:
                return [read_deployment(row) for row in rows]
            query["after"] = str(page["next"])


def read_deployment(row: dict[str, Any]) -> Route:
    """A route of a deployment of the API, whose engine serves the model under the deployment's name."""
    target = Target(row["id"], row["address"].rstrip("/"), row["name"])
    return Route(row["name"], (target,), datetime.fromisoformat(row["created_at"]))
