"""The traffic counts of one gateway process, reported to the service once a second while they change."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from serving.gateway.request_context import RequestContext, TrafficKey
from serving.gateway.traffic.counts import TrafficCounts

REPORT_SECONDS = 1.0
# A promotion has a key for each step and target; counts of older ones are of no use any more.
MAX_KEYS = 1000
MAX_REPORTED = 200

Report = Callable[[str, list[dict[str, Any]]], Awaitable[bool]]

logger = logging.getLogger("tunesmith.gateway")


class TrafficRecorder:
    """Counts requests by alias, version and deployment, and reports them.

    A report contains the counts since the start of this process, not their changes: it can be repeated, and
    the next one makes up for one that is lost. `report` gets the id of the process and its counts, and
    returns whether they were accepted.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._counts: dict[TrafficKey, TrafficCounts] = {}
        self._changed: set[TrafficKey] = set()
        self._reporter = ""
        self._task: asyncio.Task[None] | None = None

    def observe(self, context: RequestContext) -> None:
        """Count a closed request, if its route is measured."""
        if context.traffic_key is not None:
            self._count(context.traffic_key).observe(context)

    def count_failed_attempt(self, key: TrafficKey) -> None:
        """Count an attempt that failed before another target took the request over."""
        self._count(key).failed += 1

    async def aclose(self) -> None:
        """Report the last changes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._changed:
            await self._send()

    def _count(self, key: TrafficKey) -> TrafficCounts:
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= MAX_KEYS:
                oldest = next(iter(self._counts))
                del self._counts[oldest]
                self._changed.discard(oldest)
            counts = self._counts[key] = TrafficCounts()
        self._changed.add(key)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send_until_unchanged())
        return counts

    async def _send_until_unchanged(self) -> None:
        while self._changed:
            await asyncio.sleep(REPORT_SECONDS)
            await self._send()
        self._task = None

    async def _send(self) -> None:
        # Chosen late: processes that are forked from one must not share it.
        self._reporter = self._reporter or f"gateway_{secrets.token_hex(12)}"
        keys = sorted(self._changed)[:MAX_REPORTED]
        self._changed.difference_update(keys)
        rows = [
            {"alias": alias, "version": version, "deployment_id": deployment_id, "counts": counts.to_json()}
            for alias, version, deployment_id in keys
            for counts in [self._counts[alias, version, deployment_id]]
        ]
        accepted = False
        try:
            accepted = await self._report(self._reporter, rows)
        except Exception:
            logger.exception("cannot report the traffic of aliases")
        finally:
            # Also of a report that is cancelled because the process ends.
            if not accepted:
                self._changed.update(key for key in keys if key in self._counts)
