"""Datasets and the findings of their validation."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from app.client.api.files import Progress, download_file
from app.client.api.modes import Iteration, Mode, Operation
from app.client.notebook import draw_report
from app.client.views.base import ApiView, RemoteObject
from app.client.views.runs import resolve_target


class DataFault(ApiView):
    """A fault or a warning, with its place in the file."""

    api_schema = "Fault"

    line: int | None = None
    file_line: int | None = None
    field: str | None = None
    code: str
    message: str


class DataReport(ApiView):
    """The findings of the validation of a file."""

    api_schema = "ValidationReport"

    converted_from: str | None = None
    format: str | None = None
    row_count: int = 0
    valid_row_count: int = 0
    fault_count: int = 0
    fault_counts: dict[str, int] = Field({})
    faults: list[DataFault] = Field([])
    warning_count: int = 0
    warning_counts: dict[str, int] = Field({})
    warnings: list[DataFault] = Field([])
    statistics: dict[str, Any] = Field({})

    @property
    def trainable(self) -> bool:
        """Whether jobs can use the file: it has valid rows and no fault."""
        return self.fault_count == 0 and self.valid_row_count > 0

    def _repr_html_(self) -> str:
        return draw_report("", self)


class DatasetRow(ApiView):
    """A row as it is stored and as a conversation."""

    api_schema = "DatasetRowView"

    line: int
    row: dict[str, Any]
    messages: list[dict[str, Any]] | None = None


class RemoteDataset(RemoteObject[Mode]):
    """An immutable file of rows. One of a list has no report."""

    api_schema = "DatasetView"

    id: str
    name: str
    sha256: str
    size_bytes: int
    format: str | None = None
    row_count: int
    fault_count: int
    trainable: bool
    created_at: datetime
    path: str | None = None
    report: DataReport | None = None
    models: list[str] = Field([])
    jobs: list[str] = Field([])

    @Iteration
    async def rows(self) -> AsyncIterator[DatasetRow]:
        """Yield the rows of the file."""
        async for row in self._connection.pages(f"/datasets/{self.id}/rows", DatasetRow, limit=100):
            yield row

    @Operation
    async def download(self, to: str | Path = ".", progress: Progress | None = None) -> Path:
        """Download the file into a folder or to a path; return the path."""
        target = resolve_target(to, f"{self.name}.jsonl")
        path = f"/datasets/{self.id}/content"
        return await download_file(self._connection, path, target, sha256=self.sha256, progress=progress)

    @Operation
    async def delete(self) -> None:
        """Delete the dataset, which no unfinished job may use."""
        await self._connection.delete(f"/datasets/{self.id}")

    def _repr_html_(self) -> str:
        return draw_report(self.name, self.report or DataReport(row_count=self.row_count))
