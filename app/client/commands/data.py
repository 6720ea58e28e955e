"""Data: checking a file, uploading it, and reading what is stored."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from app.client.api.modes import Blocking
from app.client.clients import Client
from app.client.commands.output import (
    ExitCode,
    JsonOption,
    connect,
    count_of,
    err,
    format_age,
    note,
    out,
    print_json,
    print_table,
    remove_controls,
)
from app.client.data_check import check_file
from app.client.views.datasets import DataReport, RemoteDataset
from trainers.data.faults import share_by_code

MAX_LISTED = 20
SMALL_BYTES = 1 << 20

data_cli = typer.Typer(help="Check, upload and list data.", no_args_is_help=True)

Delimiter = Annotated[
    str | None, typer.Option(help="Of a CSV file: comma, semicolon, tab or pipe. [default: detected]")
]
Encoding = Annotated[str | None, typer.Option(help="Of a CSV file, such as cp949. [default: UTF-8]")]


@data_cli.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSON Lines, CSV, Parquet or JSON.")],
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    as_json: JsonOption = False,
) -> None:
    """Check files as an upload does, without a service; exit with 1 if one has faults."""
    reports = {str(file): check_file(file, delimiter, encoding) for file in files}
    if as_json:
        print_json(reports)
    else:
        for name, report in reports.items():
            print_report(name, report)
    if not all(report.trainable for report in reports.values()):
        raise typer.Exit(ExitCode.failed)


@data_cli.command("push")
def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, CSV, Parquet or JSON.")],
    name: Annotated[str | None, typer.Option(help="Name for jobs. [default: that of the file]")] = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a file; exit with 1 if it has faults, which make it useless for training."""
    with connect() as client:
        dataset = push_file(client, file, name, delimiter, encoding)
    if as_json:
        print_json(dataset)
    elif dataset.report is not None:
        print_report(dataset.name, dataset.report)
        known = name is not None and dataset.name != name
        if dataset.trainable:
            note(f"{'Already stored' if known else 'Stored'} as {dataset.name} ({dataset.id}).")
        else:
            note(f"No job can use this file: correct it, and push it again. Its report: {dataset.id}.")
    if not dataset.trainable:
        raise typer.Exit(ExitCode.failed)


@data_cli.command("list")
def list_data(
    preflights: Annotated[
        bool, typer.Option("--preflights", help="Also the parts that preflights have produced.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the datasets, newest first."""
    with connect() as client:
        found = list(client.datasets.list(preflights=preflights))
    if as_json:
        print_json(found)
        return
    rows = [
        [
            one.name,
            f"{one.row_count:,}",
            one.format,
            "" if one.trainable else count_of(one.fault_count, "fault"),
            format_age(one.created_at),
            one.id,
        ]
        for one in found
    ]
    print_table(
        ["name", "rows", "format", "", "age", "id"],
        rows,
        empty="There is no dataset: `tunesmith data push FILE`.",
    )


@data_cli.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name or id of the dataset.")],
    rows: Annotated[int, typer.Option(min=0, help="Number of rows to print.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Print the report of a dataset and its first rows."""
    with connect() as client:
        dataset = find_dataset(client, name)
        first = [row for _, row in zip(range(rows), dataset.rows(), strict=False)]
    if as_json:
        print_json({"dataset": dataset, "rows": first})
        return
    print_report(dataset.name, dataset.report or DataReport())
    for row in first:
        out().print(f"{row.line}: {row.row}", markup=False)


def find_dataset(client: Client, name: str) -> RemoteDataset[Blocking]:
    """Return the dataset with an id or a name; raises ObjectMissing."""
    return (None if name.startswith("dataset_") else client.datasets.find(name)) or client.datasets.get(name)


def push_file(
    client: Client,
    file: Path,
    name: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> RemoteDataset[Blocking]:
    """Upload a file with a progress bar, if it is large and this is a terminal."""
    is_shown = sys.stderr.isatty() and file.exists() and file.stat().st_size > SMALL_BYTES
    with TransferBar(f"Uploading {file.name}", is_shown) as bar:
        return client.datasets.push(file, name, delimiter=delimiter, encoding=encoding, progress=bar.report)


class TransferBar:
    """A progress bar of bytes for the block."""

    def __init__(self, text: str, is_shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=err(), disable=not is_shown, transient=True)
        self._task = self._bar.add_task(escape(remove_controls(text)), total=None)

    def report(self, done: int, total: int | None) -> None:
        """Show the bytes that have travelled."""
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> "TransferBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def print_report(name: str, report: DataReport) -> None:
    """Print the findings of a file, each with its line."""
    console = out()
    counts_of = {"row": report.row_count, "fault": report.fault_count, "warning": report.warning_count}
    found = ", ".join(count_of(n, noun) for noun, n in counts_of.items())
    console.print(f"{name}: {found}, format {report.format or 'unknown'}", markup=False)
    # Row n of a table is line n of the dataset, and another line of the file.
    unit = "line" if report.converted_from is None else "row"
    for kind, findings, counts in (
        ("fault", report.faults, report.fault_counts),
        ("warning", report.warnings, report.warning_counts),
    ):
        if counts:
            console.print(f"  {kind}s: {', '.join(f'{count:,} {code}' for code, count in counts.items())}")
        listed = share_by_code(findings, MAX_LISTED)
        for one in listed:
            line = "" if one.file_line is None else f" (line {one.file_line} of the file)"
            place = "" if one.line is None else f"{unit} {one.line}{line}: "
            console.print(f"  {kind}: {place}{one.message} [{one.code}]", markup=False)
        if (more := sum(counts.values()) - len(listed)) > 0:
            console.print(f"  … and {more:,} more; --json lists up to 100 {kind}s, of each code the first.")
