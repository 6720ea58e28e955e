"""Tools for files and datasets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio.to_thread
from mcp.server import MCPServer
from pydantic import Field

from app.client.agents.answers import (
    DatasetRows,
    FileAnswer,
    LinesAnswer,
    RepairAnswer,
    describe_report,
    shorten,
)
from app.client.agents.tool import ADDS, READS, add_tool
from app.client.clients import AsyncClient
from app.client.data_check import check_file, read_options, require_readable
from app.client.data_repair import Changes, repair_file
from app.client.views.datasets import DataReport

MAX_LINES = 200
MAX_ROWS = 50
MAX_REMOVED = 200

Value = TypeVar("Value")
FilePath = Annotated[str, Field(description="Path of a JSON Lines, CSV, Parquet or JSON file.")]
Delimiter = Annotated[
    str | None, Field(description="Of a CSV file: comma, semicolon, tab or pipe. Default: detected.")
]
Encoding = Annotated[str | None, Field(description="Of a CSV file, such as cp949. Default: UTF-8.")]


class DataTools:
    """From a raw file to a dataset."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def add_to(self, server: MCPServer) -> None:
        """Offer the tools."""
        add_tool(server, self.check_data, READS)
        add_tool(server, self.show_lines, READS)
        add_tool(server, self.repair_data, ADDS)
        add_tool(server, self.push_data, ADDS)
        add_tool(server, self.show_rows, READS)

    async def check_data(
        self, path: FilePath, delimiter: Delimiter = None, encoding: Encoding = None
    ) -> FileAnswer:
        """Check a file of training data on this machine, without the service.

        Every fault has the number of its row, from 1; for CSV, the message also has the line in the file.
        Only a file without faults can be used for training. Warnings do not prevent it, but read them.
        """
        report = await _in_thread(check_file, _find(path), delimiter, encoding)
        return describe_report(report, _next_after_check(report, path))

    async def show_lines(
        self,
        path: FilePath,
        first: Annotated[int, Field(ge=1, description="Number of the first line.")] = 1,
        count: Annotated[int, Field(ge=1, le=MAX_LINES)] = 20,
        encoding: Encoding = None,
    ) -> LinesAnswer:
        """Show lines of a file as they are, such as the header and a record with a fault."""
        return await _in_thread(_read_lines, _find(path), first, count, encoding)

    async def repair_data(
        self,
        path: FilePath,
        to: Annotated[str, Field(description="Path of the new file, ending in .jsonl; must not exist.")],
        fields: Annotated[
            dict[str, str] | None,
            Field(
                description="Each field of the new rows, as a text with {name} for a field of the old row: "
                '{"prompt": "Translate into English: {korean}", "completion": "{english}"}. '
                "Default: all fields are kept."
            ),
        ] = None,
        set_fields: Annotated[
            dict[int, dict[str, Any]] | None,
            Field(description='New values by row: {"7": {"completion": "Hello"}}, with names of new fields.'),
        ] = None,
        remove_rows: Annotated[list[int] | None, Field(description="Rows to leave out.")] = None,
        remove_unusable: Annotated[
            bool, Field(description="Leave out each row that cannot be read, or lacks a text of `fields`.")
        ] = False,
        remove_duplicates: Annotated[
            bool, Field(description="Leave out each row that equals an earlier one.")
        ] = False,
        delimiter: Delimiter = None,
        encoding: Encoding = None,
    ) -> RepairAnswer:
        """Write a repaired copy of a file as JSON Lines in UTF-8, and check it; the file itself is kept.

        Rows have the numbers that check_data reports; the result has the reason for each removed row. Do
        not invent texts: set a field only to what the file or the person says; otherwise remove the row.
        """
        changes = Changes(fields, set_fields, remove_rows or (), remove_unusable, remove_duplicates)
        repair = await _in_thread(repair_file, _find(path), _find(to), changes, delimiter, encoding)
        report = await _in_thread(check_file, repair.path)
        answer = describe_report(report, _next_after_check(report, to))
        return RepairAnswer(
            path=str(repair.path),
            rows=repair.rows,
            removed_rows=dict(list(repair.removed.items())[:MAX_REMOVED]),
            removed_count=len(repair.removed),
            report=answer,
            next=answer.next,
        )

    async def push_data(
        self,
        path: FilePath,
        name: Annotated[str | None, Field(description="Name for jobs. Default: that of the file.")] = None,
        delimiter: Delimiter = None,
        encoding: Encoding = None,
    ) -> FileAnswer:
        """Upload a file. The same bytes are stored once; jobs name the dataset by its name or id."""
        file = _find(path)
        require_readable(file)
        dataset = await self._client.datasets.push(file, name, delimiter=delimiter, encoding=encoding)
        steps = [f'dry_run with "dataset": "{dataset.name}" in a stage'] if dataset.trainable else []
        return describe_report(
            dataset.report or DataReport(), steps, dataset=dataset.name, dataset_id=dataset.id
        )

    async def show_rows(
        self,
        dataset: Annotated[str, Field(description="Id of a dataset.")],
        count: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 5,
    ) -> DatasetRows:
        """Show the first rows of a stored dataset, as conversations."""
        found = await self._client.datasets.get(dataset)
        rows: list[dict[str, Any]] = []
        async for row in found.rows():
            rows.append(shorten(row.model_dump(exclude_none=True)))
            if len(rows) == count:
                break
        return DatasetRows(name=found.name, format=found.format, row_count=found.row_count, rows=rows)


def _find(path: str) -> Path:
    """Return the path that an agent names, which may begin with `~`."""
    return Path(path).expanduser()


async def _in_thread(function: Callable[..., Value], *arguments: Any) -> Value:
    """Return the result of work on a file, which may be large, while the server answers other messages."""
    return await anyio.to_thread.run_sync(partial(function, *arguments))


def _read_lines(path: Path, first: int, count: int, encoding: str | None) -> LinesAnswer:
    require_readable(path)
    codec = read_options(None, encoding).encoding or "utf-8-sig"
    lines: dict[int, str] = {}
    total = 0
    with path.open(encoding=codec, errors="replace", newline="\n") as file:
        for total, line in enumerate(file, start=1):
            if first <= total < first + count:
                lines[total] = shorten(line.rstrip("\r\n"))
    return LinesAnswer(lines=lines, total_lines=total)


def _next_after_check(report: DataReport, path: str) -> list[str]:
    if report.trainable:
        duplicates = report.warning_counts.get("duplicate_row", 0)
        repair = (
            [f"repair_data with remove_duplicates=true: duplicate rows: {duplicates}"] if duplicates else []
        )
        return [*repair, f"push_data path={path}"]
    if "wrong_encoding" in report.fault_counts:
        return [f"check_data path={path} encoding=cp949 (Korean), or another encoding"]
    if "unknown_format" in report.fault_counts:
        return [
            f"show_lines path={path}, to see the names of the columns",
            "repair_data with `fields`, which makes prompt and completion of them",
        ]
    return ["show_lines at the lines of the faults", "repair_data with `set_fields` or `remove_rows`"]
