"""Models and deployments: finding, downloading and serving them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.client.api.connection import new_idempotency_key
from app.client.api.files import Progress
from app.client.api.modes import Iteration, Mode, Operation
from app.client.resources.base import Collection, as_json
from app.client.views.jobs import RemoteJob
from app.client.views.models import RemoteDeployment, RemoteModel


class Models(Collection[Mode]):
    """The models of the service."""

    @Operation
    async def get(self, model_id: str) -> RemoteModel[Mode]:
        """Return a model with its lineage; raises ObjectMissing."""
        return await self._connection.get(f"/models/{model_id}", RemoteModel[Mode])

    @Iteration
    async def list(
        self, *, name: str | None = None, dataset_id: str | None = None
    ) -> AsyncIterator[RemoteModel[Mode]]:
        """Yield all models, newest first, without their lineage."""
        query = {"name": name, "dataset_id": dataset_id}
        async for model in self._connection.pages("/models", RemoteModel[Mode], **query):
            yield model

    @Operation
    async def download(
        self,
        model_id: str,
        to: str | Path | None = None,
        *,
        merged: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Download a model into a folder; see RemoteModel.download."""
        model = await self._connection.get(f"/models/{model_id}", RemoteModel[Mode])
        return await RemoteModel.download.function(model, to, merged=merged, progress=progress)

    @Operation
    async def register(
        self, source: str, *, base: str | None = None, name: str | None = None
    ) -> RemoteJob[Mode]:
        """Queue the import of an adapter or whole weights from the hub or a folder of the worker."""
        stage = {"stage": "import", "model": source, **({"base": base} if base else {})}
        body = {"name": name or source, "stages": [stage]}
        return await self._connection.post(
            "/jobs", RemoteJob[Mode], body, idempotency_key=new_idempotency_key()
        )


class Deployments(Collection[Mode]):
    """The deployments of the service."""

    @Operation
    async def create(
        self, /, name: str, model: str, *, idempotency_key: str | None = None, **fields: Any
    ) -> RemoteDeployment[Mode]:
        """Keep a model ready under a name; `fields` are those of the API, such as `engine`.

        A request whose response is lost is repeated with its idempotency key, and creates one deployment.
        """
        body = as_json({"name": name, "model": model, **fields})
        key = idempotency_key or new_idempotency_key()
        return await self._connection.post("/deployments", RemoteDeployment[Mode], body, idempotency_key=key)

    @Operation
    async def get(self, deployment_id: str) -> RemoteDeployment[Mode]:
        """Return a deployment; raises ObjectMissing."""
        return await self._connection.get(f"/deployments/{deployment_id}", RemoteDeployment[Mode])

    @Iteration
    async def list(
        self, *, status: str | None = None, name: str | None = None
    ) -> AsyncIterator[RemoteDeployment[Mode]]:
        """Yield all deployments, newest first."""
        query = {"status": status, "name": name}
        async for one in self._connection.pages("/deployments", RemoteDeployment[Mode], **query):
            yield one
