"""The traffic counts of one gateway process, reported to the service once a second while they change."""

from collections.abc import Awaitable, Callable
from typing import Any

from serving.gateway.reports.changes import ChangeReporter
from serving.gateway.request_context import RequestContext, TrafficKey
from serving.gateway.traffic.counts import TrafficCounts

# A promotion has a key for each step and target; counts of older ones are of no use any more.
MAX_KEYS = 1000

Report = Callable[[str, list[dict[str, Any]]], Awaitable[bool]]


class TrafficRecorder:
    """Counts requests by alias, version and deployment, and reports them.

    A report contains the counts since the start of this process, not their changes: it can be repeated, and
    the next one makes up for one that is lost. `report` gets the id of the process and its counts, and
    returns whether they were accepted.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._counts: dict[TrafficKey, TrafficCounts] = {}
        self._changes: ChangeReporter[TrafficKey] = ChangeReporter("the traffic of aliases", self._send)

    def observe(self, context: RequestContext) -> None:
        """Count a closed request, if its route is measured."""
        if context.traffic_key is not None:
            self._count(context.traffic_key).observe(context)

    def count_failed_attempt(self, key: TrafficKey) -> None:
        """Count an attempt that failed before another target took the request over."""
        self._count(key).failed += 1

    async def aclose(self) -> None:
        """Report the last changes."""
        await self._changes.aclose()

    def _count(self, key: TrafficKey) -> TrafficCounts:
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= MAX_KEYS:
                oldest = next(iter(self._counts))
                del self._counts[oldest]
                self._changes.forget(oldest)
            counts = self._counts[key] = TrafficCounts()
        self._changes.mark(key)
        return counts

    async def _send(self, reporter: str, keys: list[TrafficKey]) -> bool:
        rows = [
            {"alias": alias, "version": version, "deployment_id": deployment_id, "counts": counts.to_json()}
            for alias, version, deployment_id in keys
            if (counts := self._counts.get((alias, version, deployment_id))) is not None
        ]
        return not rows or await self._report(reporter, rows)
