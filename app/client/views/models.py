"""Models, and deployments of them."""

import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from app.client.api.connection import RECONNECT_SECONDS
from app.client.api.errors import DeploymentFailed, WaitInterrupted, WaitTimeout
from app.client.api.files import Progress, download_archive, download_file, has_content, resolve_inside
from app.client.api.modes import Mode, Operation
from app.client.views.base import ApiView, ErrorRecord, RemoteObject

POLL_SECONDS = 0.5


class ModelFile(ApiView):
    """A file of a model."""

    api_schema = "ModelFileView"

    path: str
    size_bytes: int
    sha256: str


class ModelFileList(ApiView):
    """The files of a model."""

    api_schema = "ModelFilesView"

    items: list[ModelFile]


class RemoteModel(RemoteObject[Mode]):
    """Weights that can be served. One of a list has no lineage."""

    api_schema = "ModelLineageView"

    id: str
    name: str
    kind: str
    base: str
    parent_id: str | None = None
    dataset_id: str | None = None
    run_id: str | None = None
    sha256: str
    size_bytes: int
    template_sha256: str | None = None
    created_at: datetime
    path: str | None = None
    run: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    parent: dict[str, Any] | None = None
    used_by: dict[str, Any] | None = None

    @Operation
    async def files(self) -> list[ModelFile]:
        """Return the files, with their hashes."""
        return (await self._connection.get(f"/models/{self.id}/files", ModelFileList)).items

    @Operation
    async def download(
        self, to: str | Path | None = None, *, merged: bool = False, progress: Progress | None = None
    ) -> Path:
        """Download the files into a folder, by default one with the model's id; return the folder.

        An interrupted download continues where it was when it is repeated, and each file is compared with
        its hash. `merged` are the whole weights that a merge stage has made of an adapter.
        """
        folder = Path(to or self.id)
        if merged:
            path, query = f"/models/{self.id}/download", {"form": "merged"}
            return await download_archive(self._connection, path, folder, query=query, progress=progress)
        files = (await self._connection.get(f"/models/{self.id}/files", ModelFileList)).items
        total, done = sum(file.size_bytes for file in files), 0
        for file in files:
            target = resolve_inside(folder, file.path)
            is_there = partial(has_content, target, file.size_bytes, file.sha256)
            if not await self._connection.transport.run(is_there):
                await download_file(
                    self._connection,
                    f"/models/{self.id}/files/{file.path}",
                    target,
                    sha256=file.sha256,
                    progress=partial(_report_part, progress, done, total) if progress else None,
                )
            done += file.size_bytes
        return folder

    @Operation
    async def delete(self) -> None:
        """Delete the model, which nothing may use."""
        await self._connection.delete(f"/models/{self.id}")


class RemoteDeployment(RemoteObject[Mode]):
    """A model that is kept ready on an engine, under a name."""

    api_schema = "DeploymentView"

    id: str
    name: str
    status: str
    base: str
    model_id: str | None = None
    task: str
    pooling: str | None = None
    engine: str
    options: dict[str, Any]
    queue: str
    worker_id: str | None = None
    address: str | None = None
    upstream_model: str | None = None
    replaces: str | None = None
    idle_seconds: float
    store_days: float
    parity_mode: str
    parity: dict[str, Any] | None = None
    restart_count: int
    error: ErrorRecord | None = None
    waiting_for: str | None = None
    has_worker: bool = True
    created_at: datetime
    ready_at: datetime | None = None
    last_used_at: datetime | None = None
    stopped_at: datetime | None = None

    @Operation
    async def refresh(self) -> "RemoteDeployment[Mode]":
        """Read the deployment again, into this object."""
        self.adopt(await self._connection.get(f"/deployments/{self.id}", RemoteDeployment[Mode]))
        return self

    @Operation
    async def wait(self, timeout: float | None = None) -> "RemoteDeployment[Mode]":
        """Wait until the deployment is ready; raises DeploymentFailed, and WaitTimeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while self.status not in ("ready", "asleep", "stopped", "failed"):
                if deadline is not None and time.monotonic() >= deadline:
                    why = f" It waits: {self.waiting_for}" if self.waiting_for else ""
                    raise WaitTimeout(f"{self.name} is {self.status} after {timeout:g} seconds.{why}")
                await self._connection.transport.sleep(POLL_SECONDS)
                path = f"/api/v1/deployments/{self.id}"
                response = await self._connection.request("GET", path, patience=RECONNECT_SECONDS)
                self.adopt(self._connection.read_view(response, RemoteDeployment[Mode]))
        except KeyboardInterrupt:
            raise WaitInterrupted(
                f"{self.name} continues to start. `tunesmith deployments` shows its state."
            ) from None
        if self.status in ("stopped", "failed"):
            message = self.error.message if self.error else f"{self.name} is {self.status}."
            hint = self.error.hint if self.error else None
            raise DeploymentFailed(message, hint, code=self.error.code if self.error else "")
        return self

    @Operation
    async def stop(self, force: bool = False) -> "RemoteDeployment[Mode]":
        """Stop the deployment; `force` although an alias leads to it."""
        path = f"/deployments/{self.id}/stop"
        query = {"force": "true"} if force else {}
        self.adopt(await self._connection.post(path, RemoteDeployment[Mode], repeatable=True, query=query))
        return self

    @Operation
    async def wake(self) -> "RemoteDeployment[Mode]":
        """Start the engine of a sleeping deployment."""
        path = f"/deployments/{self.id}/wake"
        self.adopt(await self._connection.post(path, RemoteDeployment[Mode], repeatable=True))
        return self

    @Operation
    async def delete(self) -> None:
        """Delete the record of a deployment that has stopped or failed."""
        await self._connection.delete(f"/deployments/{self.id}")


def _report_part(progress: Progress, done: int, total: int, n_bytes: int, _: int | None) -> None:
    progress(done + n_bytes, total)
