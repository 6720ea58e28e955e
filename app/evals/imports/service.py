"""Evals, runs and output items from files of exported objects.

All files are checked before anything is stored. What is stored is committed in small parts, each of which
finds what an earlier import has stored, so that an import which was interrupted can be repeated.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlmodel import Session, col

from app.datasets.form import UploadedFile
from app.evals.data_source import shorten_rows
from app.evals.imports.exported import (
    ExportedEval,
    ExportedItem,
    ExportedObject,
    ExportedResults,
    ExportedRun,
)
from app.evals.imports.files import ExportFile, FoundRow, Place, read_file
from app.evals.imports.schemas import (
    EvalImportView,
    ImportedEvalView,
    ImportedRowsView,
    ImportedRunView,
    ImportOutcome,
)
from app.evals.usability import list_unusable
from app.files import service as stored_files
from app.settings import Settings
from app.storage.database import insert_rows, lock_name, read_session, transaction
from app.tables import Eval, EvalRun, File, FilePurpose, ImportedEvalItem
from app.tables.base import new_id
from trainers.runtime.verified_files import hash_file

ITEMS_PER_COMMIT = 500
FINAL_STATUSES = frozenset({"completed", "canceled", "failed"})

Content = TypeVar("Content", bound=ExportedObject)


def import_files(settings: Settings, given: Sequence[ExportFile]) -> EvalImportView:
    """Import the objects of files, in any order, and return what became of each.

    Raises UnprocessableContent, before anything is stored, for the first malformed object, and for a run or
    an item whose eval or run is neither in the files nor imported before.
    """
    row_counts = _check_all(given)
    objects = [file for file in given if file not in row_counts]
    evals: dict[str, ImportedEvalView] = {}
    for text, definition in _find(objects, ExportedEval):
        evals.setdefault(definition.id, _import_eval(settings, text, definition))
    runs: dict[str, ImportedRunView] = {}
    for text, run in _find(objects, ExportedRun):
        runs.setdefault(run.id, _import_run(text, run))
    _import_items(objects, runs)
    rows = [_import_rows(settings, file, count) for file, count in row_counts.items()]
    return EvalImportView(evals=list(evals.values()), runs=list(runs.values()), files=rows)


def _check_all(given: Sequence[ExportFile]) -> dict[ExportFile, int]:
    """Read all files; return those of rows with their numbers of rows."""
    row_counts: dict[ExportFile, int] = {}
    ids: dict[type[ExportedObject], set[str]] = {ExportedEval: set(), ExportedRun: set(), ExportedItem: set()}
    needed_evals: dict[str, Place] = {}
    needed_runs: dict[str, Place] = {}
    for file in given:
        found = None
        for found in read_file(file):
            if isinstance(found, FoundRow):
                row_counts[file] = row_counts.get(file, 0) + 1
            elif isinstance(found.content, ExportedItem):
                needed_runs.setdefault(found.content.run_id, found.place)
            else:
                ids[type(found.content)].add(found.content.id)
                if isinstance(found.content, ExportedRun):
                    needed_evals.setdefault(found.content.eval_id, found.place)
        if found is None:
            raise Place(file.name, 1).error("", "the file is empty")
    with read_session() as session:
        _require(session, Eval, "eval_id", ids[ExportedEval], needed_evals)
        _require(session, EvalRun, "run_id", ids[ExportedRun], needed_runs)
    return row_counts


def _require(
    session: Session,
    table: type[Eval] | type[EvalRun],
    field: str,
    given: set[str],
    needed: Mapping[str, Place],
) -> None:
    for imported_id, place in needed.items():
        if imported_id in given:
            continue
        if session.scalar(select(col(table.id)).where(col(table.imported_id) == imported_id)) is None:
            raise place.error(field, f"{imported_id!r} is neither in these files nor imported before")


def _find(files: Sequence[ExportFile], kind: type[Content]) -> Iterator[tuple[str, Content]]:
    """Yield the text and the content of the objects of one kind."""
    for file in files:
        for found in read_file(file):
            if not isinstance(found, FoundRow) and isinstance(found.content, kind):
                yield found.text, found.content


def _import_eval(settings: Settings, text: str, content: ExportedEval) -> ImportedEvalView:
    with transaction() as session:
        lock_name(session, f"import {content.id}")
        definition = session.scalars(select(Eval).where(col(Eval.imported_id) == content.id)).one_or_none()
        outcome = _compare(definition, text)
        if definition is None:
            created_at = datetime.fromtimestamp(content.created_at, UTC)
            definition = Eval(
                id=new_id("eval", created_at=created_at),
                name=content.name or "",
                data_source_config=_read_config(content.data_source_config),
                testing_criteria=content.testing_criteria,
                custom=content.metadata or {},
                created_at=created_at,
                updated_at=created_at,
                imported_id=content.id,
                imported_object=text,
            )
            session.add(definition)
        return ImportedEvalView(
            imported_id=content.id,
            id=definition.id,
            name=definition.name,
            outcome=outcome,
            criteria=len(definition.testing_criteria),
            unusable=list_unusable(session, definition, settings),
        )


def _read_config(exported: dict[str, Any]) -> dict[str, Any]:
    """Return a data source config with the fields of a request, of which the API returns the schema only."""
    if exported.get("type") != "custom":
        return exported
    schema = exported.get("schema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    return exported | {
        "item_schema": properties.get("item", {}),
        "include_sample_schema": "sample" in properties,
    }


def _import_run(text: str, content: ExportedRun) -> ImportedRunView:
    with transaction() as session:
        lock_name(session, f"import {content.id}")
        run = session.scalars(select(EvalRun).where(col(EvalRun.imported_id) == content.id)).one_or_none()
        outcome = _compare(run, text)
        if run is None:
            definition = session.scalars(select(Eval).where(col(Eval.imported_id) == content.eval_id)).one()
            created_at = datetime.fromtimestamp(content.created_at, UTC)
            run = EvalRun(
                id=new_id("evalrun", created_at=created_at),
                eval_id=definition.id,
                name=content.name or "",
                model=content.model or "",
                data_source=shorten_rows(content.data_source),
                testing_criteria=definition.testing_criteria,
                custom=content.metadata or {},
                created_at=created_at,
                imported_id=content.id,
                # Nothing here would end it.
                imported_status=content.status if content.status in FINAL_STATUSES else "canceled",
                imported_results=content.model_dump(include=set(ExportedResults.model_fields)),
                imported_object=text,
            )
            session.add(run)
        return _view_run(run, content.status, content.result_counts.total, outcome)


def _view_run(run: EvalRun, status: str, total: int, outcome: ImportOutcome) -> ImportedRunView:
    assert run.imported_id is not None, "it was found by this id"
    return ImportedRunView(
        imported_id=run.imported_id,
        id=run.id,
        eval_id=run.eval_id,
        status=status,
        outcome=outcome,
        items_total=total,
    )


def _import_items(files: Sequence[ExportFile], runs: dict[str, ImportedRunView]) -> None:
    """Import the output items, and add their numbers to the runs; `runs` gets those of earlier imports."""
    items = _find(files, ExportedItem)
    while batch := list(islice(items, ITEMS_PER_COMMIT)):
        by_run: dict[str, dict[str, tuple[str, ExportedItem]]] = {}
        for text, content in batch:
            by_run.setdefault(content.run_id, {}).setdefault(content.id, (text, content))
        with transaction() as session:
            for run_id, found in by_run.items():
                if run_id not in runs:
                    runs[run_id] = _find_run(session, run_id)
                _add_items(session, runs[run_id], found)


def _find_run(session: Session, imported_id: str) -> ImportedRunView:
    run = session.scalars(select(EvalRun).where(col(EvalRun.imported_id) == imported_id)).one()
    results = ExportedResults.model_validate(run.imported_results)
    status = run.imported_status or ""
    return _view_run(run, status, results.result_counts.total, ImportOutcome.unchanged)


def _add_items(
    session: Session, view: ImportedRunView, found: Mapping[str, tuple[str, ExportedItem]]
) -> None:
    lock_name(session, f"import {view.imported_id}")
    of_run = col(ImportedEvalItem.run_id) == view.id
    is_known = col(ImportedEvalItem.imported_id).in_(found)
    known = set(session.scalars(select(col(ImportedEvalItem.imported_id)).where(of_run, is_known)))
    last = session.scalar(select(func.max(col(ImportedEvalItem.position))).where(of_run))
    new = [(text, content) for text, content in found.values() if content.id not in known]
    rows = [
        {
            "run_id": view.id,
            "position": position,
            "imported_id": content.id,
            "status": content.status,
            "object": text,
        }
        for position, (text, content) in enumerate(new, 0 if last is None else last + 1)
    ]
    if rows:
        insert_rows(session, ImportedEvalItem, rows)
    view.items_created += len(rows)
    view.items_unchanged += len(known)


def _import_rows(settings: Settings, file: ExportFile, count: int) -> ImportedRowsView:
    """Keep a file of rows as a file for evals, unless one with this name and content exists."""
    name = Path(file.name).name
    sha256 = hash_file(file.path)
    same = stored_files.select_files().where(
        col(File.purpose) == FilePurpose.evals, col(File.sha256) == sha256, col(File.filename) == name
    )
    with read_session() as session:
        existing = session.scalars(same.limit(1)).one_or_none()
    stored = existing or stored_files.create_file(
        UploadedFile(file.path, name), FilePurpose.evals, None, settings.max_upload_bytes
    )
    outcome = ImportOutcome.created if existing is None else ImportOutcome.unchanged
    return ImportedRowsView(filename=name, id=stored.id, rows=count, outcome=outcome)


def _compare(existing: Eval | EvalRun | None, text: str) -> ImportOutcome:
    if existing is None:
        return ImportOutcome.created
    return ImportOutcome.unchanged if existing.imported_object == text else ImportOutcome.different
