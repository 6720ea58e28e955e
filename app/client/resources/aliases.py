"""Aliases and their promotions."""

from collections.abc import AsyncIterator

from app.client.api.modes import Iteration, Mode, Operation
from app.client.resources.base import Collection
from app.client.views.aliases import AliasRecord, PromotionRecord


class Aliases(Collection[Mode]):
    """The aliases of deployments."""

    @Operation
    async def get(self, name: str) -> AliasRecord:
        """Return an alias with the deployments of its targets; raises ObjectMissing."""
        return await self._connection.get(f"/aliases/{name}", AliasRecord)

    @Iteration
    async def list(self) -> AsyncIterator[AliasRecord]:
        """Yield all aliases, by name."""
        async for alias in self._connection.pages("/aliases", AliasRecord):
            yield alias

    @Iteration
    async def promotions(self, name: str) -> AsyncIterator[PromotionRecord]:
        """Yield all promotions of an alias, newest first, with what was measured in each step."""
        async for promotion in self._connection.pages(f"/aliases/{name}/promotions", PromotionRecord):
            yield promotion
