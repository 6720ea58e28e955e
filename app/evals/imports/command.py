"""The command `python -m app import-evals`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.evals.imports.files import ExportFile
from app.evals.imports.schemas import EvalImportView
from app.evals.imports.service import import_files
from app.http.errors import HttpError
from app.settings import Settings

SUFFIXES = (".json", ".jsonl", ".ndjson")


def run_import(settings: Settings, paths: Sequence[Path]) -> None:
    """Import files, and those in folders with the names of JSON, and print what became of each object.

    Exits with status 1 and the place of the first malformed object.
    """
    files = [ExportFile(path, str(path)) for path in _list_files(paths)]
    if not files:
        sys.exit(f"There are no files with the names {', '.join(f'*{suffix}' for suffix in SUFFIXES)}.")
    try:
        report = import_files(settings, files)
    except HttpError as error:
        sys.exit(f"{error.message} Nothing was imported.")
    for line in describe(report):
        print(line)


def describe(report: EvalImportView) -> Iterator[str]:
    """Yield a line for each object, with its columns separated by tabs, and one for each unusable grader."""
    for each in report.evals:
        yield f"eval\t{each.imported_id}\t{each.id}\t{each.outcome}\t{each.criteria} criteria\t{each.name!r}"
        for criterion in each.unusable:
            yield f"unusable\t{each.imported_id}\t{criterion.name} ({criterion.type})\t{criterion.reason}"
    for run in report.runs:
        known = run.items_created + run.items_unchanged
        items = f"{run.items_created} new of {known} items in the files; the run has {run.items_total}"
        yield f"run\t{run.imported_id}\t{run.id}\t{run.outcome}\t{run.status}\t{items}"
    for file in report.files:
        yield f"file\t{file.filename}\t{file.id}\t{file.outcome}\t{file.rows} rows"


def _list_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        elif path.is_file():
            yield path
        else:
            sys.exit(f"There is no file or folder {path}.")
