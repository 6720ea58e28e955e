"""Workers, queues and cloud hosts."""

from collections.abc import AsyncIterator

from app.client.api.modes import Iteration, Mode
from app.client.resources.base import Collection
from app.client.views.machines import HostRecord, QueueRecord, WaitingRunRecord, WorkerRecord


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
