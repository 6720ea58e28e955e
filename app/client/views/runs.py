"""Runs: their curve, log, checkpoints and files."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from app.client.api.errors import ClientError
from app.client.api.files import Progress, download_file, resolve_inside
from app.client.api.modes import Iteration, Mode, Operation, run_blocking
from app.client.notebook import draw_run
from app.client.views.base import ApiView, ErrorRecord, RemoteObject


class PandasMissing(ClientError):
    """The package pandas is not installed."""


class CurvePoint(ApiView):
    """The metrics that a program logged at a step."""

    api_schema = "MetricsView"

    seq: int
    attempt: int
    step: int | None = None
    values: dict[str, float | None]
    created_at: datetime


class RunEvent(ApiView):
    """An event of a run."""

    api_schema: ClassVar[str | None] = "EventView"

    seq: int
    attempt: int
    type: str
    step: int | None = None
    data: dict[str, Any]
    created_at: datetime


class LogLines(ApiView):
    """The log lines of about a second."""

    api_schema = "LogView"

    seq: int
    attempt: int
    lines: list[str]
    created_at: datetime


class RemoteCheckpoint(ApiView):
    """A state from which a run can resume."""

    api_schema = "CheckpointView"

    id: str
    attempt: int
    step: int
    sha256: str
    size_bytes: int
    resumable: bool
    metrics: dict[str, float | None]
    model_id: str | None
    created_at: datetime


class FileRecord(ApiView):
    """A file of a run."""

    api_schema = "RunFileView"

    name: str
    size_bytes: int


class FileRecords(ApiView):
    """The files of a run."""

    api_schema = "RunFilesView"

    items: list[FileRecord]


class RemoteRun(RemoteObject[Mode]):
    """The execution of one stage of a job."""

    api_schema = "RunView"

    id: str
    job_id: str
    position: int
    name: str
    full_name: str
    stage: str
    queue: str
    priority: int
    status: str
    needs: list[str]
    when: str
    waiting_for: str | None = None
    error: ErrorRecord | None = None
    attempt: int
    failure_count: int
    step: int
    total_steps: int | None = None
    progress: float
    eta_seconds: float | None = None
    worker_id: str | None = None
    members: list[dict[str, Any]]
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    config: dict[str, Any]
    result: dict[str, Any] | None = None
    model_id: str | None = None
    inputs: dict[str, Any] | None = None
    reused_from: str | None = None
    backend: dict[str, Any] | None = None
    resume_guarantee: dict[str, Any] | None = None
    log_published: bool
    tracking: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]] = Field({})

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.status in ("succeeded", "failed", "cancelled", "skipped")

    @Operation
    async def refresh(self) -> "RemoteRun[Mode]":
        """Read the run again, into this object."""
        self.adopt(await self._connection.get(f"/runs/{self.id}", RemoteRun[Mode]))
        return self

    @Operation
    async def points(self) -> list[CurvePoint]:
        """Return the metrics by step; of a step that was repeated after an interruption, the last ones."""
        return await self._read_points()

    @Operation
    async def curve(self) -> Any:
        """Return the metrics as a pandas data frame with the column `step` and one for each metric."""
        try:
            import pandas
        except ImportError:
            raise PandasMissing(
                "A data frame needs the package pandas, which is not installed.",
                "Install it with `pip install pandas`, or use points(), which returns a list.",
            ) from None
        return pandas.DataFrame([{"step": one.step, **one.values} for one in await self._read_points()])

    @Iteration
    async def logs(self) -> AsyncIterator[str]:
        """Yield the lines of the program's log until now."""
        async for page in self._connection.pages(f"/runs/{self.id}/logs", LogLines, limit=200):
            for line in page.lines:
                yield line

    @Iteration
    async def events(self, *types: str) -> AsyncIterator[RunEvent]:
        """Yield the events of the run until now, of all types or of these."""
        query = {"type": list(types)} if types else {}
        async for event in self._connection.pages(f"/runs/{self.id}/events", RunEvent, limit=200, **query):
            yield event

    @Iteration
    async def checkpoints(self) -> AsyncIterator[RemoteCheckpoint]:
        """Yield the checkpoints, newest first."""
        async for one in self._connection.pages(f"/runs/{self.id}/checkpoints", RemoteCheckpoint):
            yield one

    @Operation
    async def files(self) -> list[FileRecord]:
        """Return the files of the last attempt."""
        return (await self._connection.get(f"/runs/{self.id}/files", FileRecords)).items

    @Operation
    async def download(self, name: str, to: str | Path = ".", progress: Progress | None = None) -> Path:
        """Download a file of the run, such as `log.txt`, into a folder or to a path; return the path."""
        path = f"/runs/{self.id}/files/{name}"
        return await download_file(self._connection, path, resolve_target(to, name), progress=progress)

    async def _read_points(self) -> list[CurvePoint]:
        points: dict[int | None, CurvePoint] = {}
        async for one in self._connection.pages(f"/runs/{self.id}/metrics", CurvePoint, limit=200):
            earlier = points.get(one.step)
            if earlier is not None and earlier.attempt == one.attempt:
                # Training and validation report their metrics of a step in events of their own.
                one.values = {**earlier.values, **one.values}
            points[one.step] = one
        return sorted(points.values(), key=lambda one: -1 if one.step is None else one.step)

    def _repr_html_(self) -> str:
        is_readable = self.is_blocking() and self.started_at is not None
        return draw_run(self, run_blocking(self._read_points()) if is_readable else [])


def resolve_target(to: str | Path, name: str) -> Path:
    """Return the path to write: `to` itself, or a name in the folder `to`, which it cannot leave."""
    path = Path(to)
    return resolve_inside(path, name) if path.is_dir() or str(to).endswith("/") else path
