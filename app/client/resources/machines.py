"""Workers and cloud hosts."""

from collections.abc import AsyncIterator

from app.client.api.modes import Iteration, Mode
from app.client.resources.base import Collection
from app.client.views.machines import HostRecord, WorkerRecord


class Workers(Collection[Mode]):
    """The workers of the service."""

    @Iteration
    async def list(self, *, alive: bool = True) -> AsyncIterator[WorkerRecord]:
        """Yield the workers that are alive, or all."""
        async for worker in self._connection.pages("/workers", WorkerRecord, alive=alive):
            yield worker


class Hosts(Collection[Mode]):
    """The hosts that the service has launched in clouds."""

    @Iteration
    async def list(self, *, status: str | None = None) -> AsyncIterator[HostRecord]:
        """Yield all hosts, newest first."""
        async for host in self._connection.pages("/hosts", HostRecord, status=status):
            yield host
