"""The routing table of the service's API, for a standalone gateway."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx2

from serving.gateway.routes import CachedRoutingTable, Route, Target
from serving.gateway.standalone.api_client import create_api_client
from serving.http.errors import EngineUnavailable

WAKE_TIMEOUT_SECONDS = 60.0
WAKE_POLL_SECONDS = 0.3
logger = logging.getLogger("tunesmith.gateway.routes")


class ApiRoutingTable(CachedRoutingTable):
    """Routes of `GET /api/v1/routes`."""

    load_errors = (httpx2.HTTPError, ValueError, KeyError, TypeError)

    def __init__(self, api_url: str, api_key: str | None = None) -> None:
        super().__init__()
        self.api = create_api_client(api_url, api_key)

    async def load(self) -> list[Route]:
        response = await self.api.get("/routes")
        response.raise_for_status()
        return [
            Route(
                row["name"],
                tuple(Target(**target) for target in row["targets"]),
                datetime.fromisoformat(row["created_at"]),
                row.get("not_ready"),
                row.get("owned_by", "tunesmith"),
                row.get("measured_version"),
            )
            for row in response.json()["items"]
        ]

    async def wake(self, target: Target) -> Target:
        """Wake the deployment and poll until an engine serves it; raises EngineUnavailable."""
        deadline = time.monotonic() + WAKE_TIMEOUT_SECONDS
        status = "asleep"
        path = f"/deployments/{target.deployment_id or 'none'}/wake"
        try:
            while time.monotonic() < deadline:
                response = await self.api.post(path, json={})
                response.raise_for_status()
                deployment = response.json()
                status = deployment["status"]
                if deployment.get("has_worker") is False:
                    raise EngineUnavailable(f"The deployment cannot start: {deployment['waiting_for']}", 5)
                if deployment["status"] == "ready":
                    self._fresh_until = 0.0
                    base_url = deployment["address"].rstrip("/")
                    return replace(target, base_url=base_url, upstream_model=deployment["upstream_model"])
                await asyncio.sleep(WAKE_POLL_SECONDS)
        except httpx2.HTTPStatusError as error:
            if error.response.status_code == 404:
                raise EngineUnavailable("The deployment does not exist any more.") from error
            raise EngineUnavailable(
                f"The deployment cannot be woken: the service responds with {error.response.status_code}."
            ) from error
        except self.load_errors as error:
            raise EngineUnavailable(
                "The deployment is asleep, and the service that wakes it is unreachable. Try again soon."
            ) from error
        raise EngineUnavailable(
            f"The deployment is {status}, and was not ready within {WAKE_TIMEOUT_SECONDS:.0f} s. "
            "Try again soon.",
            5,
        )

    async def record_use(self, deployment_ids: Collection[str]) -> None:
        if not deployment_ids:
            return
        try:
            body = {"deployment_ids": sorted(deployment_ids)}
            (await self.api.post("/routes/use", json=body)).raise_for_status()
        except httpx2.HTTPError as error:
            logger.warning("cannot report which deployments are in use: %r", error)

    async def record_tokens(self, reporter: str, rows: list[dict[str, Any]]) -> dict[str, int] | None:
        try:
            response = await self.api.post("/token-use", json={"reporter": reporter, "items": rows})
            response.raise_for_status()
            return {row["key_id"]: row["tokens"] for row in response.json()["items"]}
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            logger.warning("the service refuses the tokens of keys with status %d", status)
            # A key without the scope `write`, or an older service: a repetition would fail, too.
            return {} if status < 500 else None
        except self.load_errors as error:
            logger.warning("cannot report the tokens of keys: %r", error)
            return None

    async def record_traffic(self, reporter: str, rows: list[dict[str, Any]]) -> bool:
        try:
            (await self.api.post("/traffic", json={"reporter": reporter, "items": rows})).raise_for_status()
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            logger.warning("the service refuses the traffic of aliases with status %d", status)
            # A key without the scope `write`, or an older service: a repetition would fail, too.
            return status < 500
        except httpx2.HTTPError as error:
            logger.warning("cannot report the traffic of aliases: %r", error)
            return False
        return True
