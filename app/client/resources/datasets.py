"""Datasets: uploading, finding and listing them."""

from collections.abc import AsyncIterator
from pathlib import Path

from app.client.api.files import Progress, upload_file
from app.client.api.modes import Iteration, Mode, Operation
from app.client.resources.base import Collection
from app.client.views.datasets import RemoteDataset


class Datasets(Collection[Mode]):
    """The datasets of the service."""

    @Operation
    async def push(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        delimiter: str | None = None,
        encoding: str | None = None,
        progress: Progress | None = None,
    ) -> RemoteDataset[Mode]:
        """Upload JSON Lines, CSV, Parquet or a JSON array, and return the dataset with its report.

        A file with faults is stored as well; `trainable` is then false. The same content is stored once.
        """
        fields = {"name": name, "delimiter": delimiter, "encoding": encoding}
        sent = {key: value for key, value in fields.items() if value is not None}
        response = await upload_file(self._connection, "/datasets", Path(path), sent, progress)
        return self._connection.read_view(response, RemoteDataset[Mode])

    @Operation
    async def get(self, dataset_id: str) -> RemoteDataset[Mode]:
        """Return a dataset with its report; raises ObjectMissing."""
        return await self._connection.get(f"/datasets/{dataset_id}", RemoteDataset[Mode])

    @Operation
    async def find(self, name: str) -> RemoteDataset[Mode] | None:
        """Return the newest dataset with a name, which is the one that jobs use; None if there is none."""
        async for dataset in self._connection.pages("/datasets", RemoteDataset[Mode], name=name, limit=1):
            return await self._connection.get(f"/datasets/{dataset.id}", RemoteDataset[Mode])
        return None

    @Iteration
    async def list(
        self, *, name: str | None = None, preflights: bool = True
    ) -> AsyncIterator[RemoteDataset[Mode]]:
        """Yield all datasets, newest first, without their reports; optionally without those of preflights."""
        query = {"name": name, "preflights": preflights}
        async for dataset in self._connection.pages("/datasets", RemoteDataset[Mode], **query):
            yield dataset
