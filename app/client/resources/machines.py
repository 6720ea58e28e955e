"""Workers, queues, cloud hosts and storage."""

from collections.abc import AsyncIterator

from app.client.api.modes import Iteration, Mode, Operation
from app.client.resources.base import Collection
from app.client.views.machines import (
    CollectionRecord,
    HostRecord,
    QueueRecord,
    StorageRecord,
    WaitingRunRecord,
    WorkerRecord,
)

POLL_SECONDS = 0.5


class Workers(Collection[Mode]):
    """The workers of the service."""

    @Iteration
    async def list(self, *, alive: bool = True) -> AsyncIterator[WorkerRecord]:
        """Yield the workers that are alive, or all."""
        async for worker in self._connection.pages("/workers", WorkerRecord, alive=alive):
            yield worker


class Queues(Collection[Mode]):
    """The queues, each a kind of hardware."""

    @Iteration
    async def list(self) -> AsyncIterator[QueueRecord]:
        """Yield all queues, with the slots of their live workers and the number of their runs."""
        async for queue in self._connection.pages("/queues", QueueRecord):
            yield queue

    @Iteration
    async def waiting(self, queue: str) -> AsyncIterator[WaitingRunRecord]:
        """Yield the runs that wait for a queue, in the order of their start, with the reason of each."""
        async for run in self._connection.pages(f"/queues/{queue}/waiting", WaitingRunRecord):
            yield run


class Hosts(Collection[Mode]):
    """The hosts that the service has launched in clouds."""

    @Iteration
    async def list(self, *, status: str | None = None) -> AsyncIterator[HostRecord]:
        """Yield all hosts, newest first."""
        async for host in self._connection.pages("/hosts", HostRecord, status=status):
            yield host


class Storage(Collection[Mode]):
    """The use of space, and collections of garbage."""

    @Operation
    async def get(self) -> StorageRecord:
        """Return what takes the space, what the last collections have removed, and what they keep."""
        return await self._connection.get("/storage", StorageRecord)

    @Operation
    async def collect(self, *, dry_run: bool = True) -> CollectionRecord:
        """Collect garbage, or find out what would be removed, and wait for the result.

        Raises RequestConflict while another process collects.
        """
        body = {"dry_run": dry_run}
        started = await self._connection.post("/storage/collections", CollectionRecord, body)
        while True:
            storage = await self._connection.get("/storage", StorageRecord)
            found = storage.requested
            if found is None or found.started_at != started.started_at:
                # Another request has followed, whose result replaces that of this one.
                return started
            if found.ended_at is not None or not storage.collecting:
                return found
            await self._connection.transport.sleep(POLL_SECONDS)
