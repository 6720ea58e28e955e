"""Datasets: stored once per content, validated once, never changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from app.datasets.form import UploadedFile
from app.datasets.schemas import DatasetRowView, DatasetView, summary_view
from app.downloads.response import Download
from app.downloads.stored_files import read_stored
from app.http.errors import InUse, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs.inputs import MAX_LISTED, is_trained_on, list_unfinished_jobs
from app.runs.names import PREFLIGHT_DATASET_PREFIX, is_of_preflight
from app.storage.database import database_now, read_session, transaction
from app.storage.manifest import ArtifactCorrupt
from app.storage.opening import get_store
from app.tables import Dataset, File, Model
from app.tables.base import new_id, utc_now
from trainers.data.checks import validate_row
from trainers.data.conversation import to_messages
from trainers.data.conversion.csv_table import CsvOptions
from trainers.data.conversion.to_json_lines import convert_to_json_lines
from trainers.data.files.jsonl import read_rows
from trainers.data.formats import RowFormat
from trainers.data.validate import ValidationReport, validate_conversion, validate_file
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import hash_file

JSONL = "application/jsonl"


class DatasetNotFound(NotFound):
    """No dataset has this id."""

    code = ErrorCode.dataset_not_found


def create_from_upload(
    file: UploadedFile, name: str, options: CsvOptions, max_bytes: int
) -> tuple[Dataset, bool]:
    """Convert a CSV, Parquet or JSON array file to JSON Lines and store it; see `create_dataset`.

    A file that cannot be converted whole is stored as it is, with the faults in its report.
    """
    rows = file.path.with_name("rows.jsonl")
    conversion = convert_to_json_lines(file.path, file.name, rows, options, max_bytes)
    if conversion is None:
        return create_dataset(file.path, name)
    is_whole = conversion.file_fault is None and not conversion.row_faults
    return create_dataset(rows if is_whole else file.path, name, validate_conversion(rows, conversion))


def create_dataset(path: Path, name: str, report: ValidationReport | None = None) -> tuple[Dataset, bool]:
    """Store a file with its validation report; return its dataset, and whether that existed before.

    A file with faults is stored as well, so that its report can be read. A deleted dataset with the same
    content is restored under its id. No session is open while the file is read and copied.
    """
    sha256 = hash_file(path)
    existing = _find_by_hash(sha256)
    if existing is not None and existing.deleted_at is None:
        _restore_content(existing, path)
        if existing.fault_count:
            # The faults depend on the name and the options that the file was sent with.
            existing = _update_report(existing.id, report or validate_file(path))
        if is_of_preflight(existing.name) and not is_of_preflight(name):
            # The same rows as those of a preflight, which lists do not show: now they are somebody's dataset.
            existing = _rename(existing.id, name)
        return existing, True
    report = report or validate_file(path)
    # A key is never used twice, or the deletion of an earlier file could remove this one.
    artifact = f"datasets/{new_id('file')}.jsonl"
    get_store().publish_file(path, artifact)
    content = {
        "name": name,
        "artifact": artifact,
        "size_bytes": path.stat().st_size,
        "created_at": utc_now(),
        **_report_columns(report),
    }
    dataset = _insert(sha256, content) if existing is None else _restore(existing.id, content)
    if dataset is not None:
        return dataset, False
    # Another upload of the same content was committed first.
    get_store().delete(artifact)
    existing = _find_by_hash(sha256)
    assert existing is not None, "the hash is the only unique column"
    return existing, True


def keep_without_files(dataset_id: str) -> None:
    """Record that a dataset was uploaded by itself as well: it stays when files with its rows are deleted."""
    statement = update(File).where(col(File.dataset_id) == dataset_id).values(owns_dataset=False)
    with transaction() as session:
        session.execute(statement.execution_options(synchronize_session=False))


def list_datasets(
    session: Session,
    paging: PageQuery,
    name: str | None = None,
    row_format: RowFormat | None = None,
    *,
    with_preflights: bool = True,
) -> tuple[Sequence[Dataset], str | None]:
    """Return a page of datasets, newest first, optionally with one name or format.

    Those that only a preflight has produced are found by their name in any case.
    """
    statement = select(Dataset).where(col(Dataset.deleted_at).is_(None))
    if name is not None:
        statement = statement.where(col(Dataset.name) == name)
    if row_format is not None:
        statement = statement.where(col(Dataset.format) == row_format)
    if not with_preflights and name is None:
        beginning = func.substr(col(Dataset.name), 1, len(PREFLIGHT_DATASET_PREFIX))
        statement = statement.where(beginning != PREFLIGHT_DATASET_PREFIX)
    return paginate_newest_first(session, statement, col(Dataset.id), paging)


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    """Return the dataset; raises DatasetNotFound, also for one that was deleted."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.deleted_at is not None:
        missing = f"There is no dataset {dataset_id}."
        if dataset is not None:
            missing = f"The dataset {dataset_id} ({dataset.name}) was deleted at {dataset.deleted_at}."
        raise DatasetNotFound(missing, hint="List the datasets with GET /api/v1/datasets.")
    return dataset


def delete_dataset(session: Session, dataset_id: str) -> None:
    """Mark a dataset as deleted; raises DatasetNotFound, and InUse while an unfinished job uses it.

    The row remains for the lineage of models; the next collection deletes the file.
    """
    get_dataset(session, dataset_id)
    # The UPDATE locks the row before the check, so that a job which names the dataset waits for its result.
    _mark_deleted(session, dataset_id)
    if unfinished := list_unfinished_jobs(session, dataset_id):
        raise InUse(
            f"The dataset {dataset_id} is used by {len(unfinished)} unfinished "
            f"{'job' if len(unfinished) == 1 else 'jobs'}, the first of which is {unfinished[0]}.",
            hint="Wait until they have finished, or cancel them.",
            used_by=unfinished,
        )


def view_dataset(session: Session, dataset: Dataset) -> DatasetView:
    """Build the view of a dataset, with the models trained on it and the unfinished jobs that use it."""
    trained = select(Model.id).where(is_trained_on(dataset.id), col(Model.deleted_at).is_(None))
    return DatasetView(
        **summary_view(dataset).model_dump(),
        report=ValidationReport.model_validate(dataset.report),
        models=list(session.exec(trained.order_by(col(Model.id).desc()).limit(MAX_LISTED))),
        jobs=list_unfinished_jobs(session, dataset.id),
    )


def load_view(dataset_id: str) -> DatasetView:
    """Return the view of a dataset, read in a session of its own."""
    with read_session() as session:
        return view_dataset(session, get_dataset(session, dataset_id))


def list_rows(dataset_id: str, after: int, limit: int) -> tuple[list[DatasetRowView], int | None]:
    """Return up to `limit` readable rows after the first `after`, and `after` of the next page.

    Raises DatasetNotFound or ArtifactCorrupt.
    """
    dataset = _load(dataset_id)
    try:
        path = get_store().fetch_file(dataset.artifact, dataset.sha256)
    except FileNotFoundError:
        raise ArtifactCorrupt(dataset.artifact, "it is missing") from None
    rows = read_rows(path, offset=after, limit=limit)
    following = after + len(rows)
    has_more = bool(rows) and bool(read_rows(path, offset=following, limit=1))
    views = [
        DatasetRowView(line=line, row=row, messages=_conversation(row, dataset.format)) for line, row in rows
    ]
    return views, following if has_more else None


def find_content(dataset_id: str) -> Download:
    """Return the file as it was uploaded, to send; raises DatasetNotFound."""
    dataset = _load(dataset_id)
    return Download(
        filename=f"{dataset.id}.jsonl",
        media_type=JSONL,
        size_bytes=dataset.size_bytes,
        etag=f'"{dataset.sha256}"',
        open=lambda part: read_stored(dataset.artifact, dataset.sha256, part),
    )


def _restore_content(dataset: Dataset, path: Path) -> None:
    """Publish the content again if the stored file is missing or damaged."""
    try:
        get_store().fetch_file(dataset.artifact, dataset.sha256)
    except (ArtifactCorrupt, FileNotFoundError):
        get_store().publish_file(path, dataset.artifact, replace=True)


def _report_columns(report: ValidationReport) -> dict[str, Any]:
    return {
        "format": report.format,
        "row_count": report.row_count,
        "fault_count": report.fault_count,
        "report": report.model_dump(mode="json"),
    }


def _update_report(dataset_id: str, report: ValidationReport) -> Dataset:
    """Replace the report of a dataset with faults, and return the dataset."""
    with transaction() as session:
        dataset = session.get_one(Dataset, dataset_id, with_for_update=True)
        if dataset.deleted_at is None:
            dataset.sqlmodel_update(_report_columns(report))
        return dataset


def _rename(dataset_id: str, name: str) -> Dataset:
    with transaction() as session:
        dataset = session.get_one(Dataset, dataset_id, with_for_update=True)
        dataset.name = name
        return dataset


def _insert(sha256: str, content: dict[str, Any]) -> Dataset | None:
    """Insert a dataset; return None if another one has the same content."""
    dataset = Dataset(sha256=sha256, **content)
    try:
        with transaction() as session:
            session.add(dataset)
    except IntegrityError:
        return None
    return dataset


def _restore(dataset_id: str, content: dict[str, Any]) -> Dataset | None:
    """Give a deleted dataset its content again; return None if another upload has done so."""
    statement = update(Dataset).where(col(Dataset.id) == dataset_id, col(Dataset.deleted_at).is_not(None))
    with transaction() as session:
        return session.scalars(
            statement.values(deleted_at=None, **content)
            .returning(Dataset)
            .execution_options(synchronize_session=False, populate_existing=True)
        ).one_or_none()


def _mark_deleted(session: Session, dataset_id: str) -> None:
    session.execute(
        update(Dataset)
        .where(col(Dataset.id) == dataset_id)
        .values(deleted_at=database_now(), report={})
        .execution_options(synchronize_session=False)
    )


def _find_by_hash(sha256: str) -> Dataset | None:
    with read_session() as session:
        return session.exec(select(Dataset).where(col(Dataset.sha256) == sha256)).one_or_none()


def _load(dataset_id: str) -> Dataset:
    """Return the dataset, with the session closed again: reading a file must not keep one open."""
    with read_session() as session:
        return get_dataset(session, dataset_id)


def _conversation(row: dict[str, object], row_format: RowFormat | None) -> list[dict[str, object]] | None:
    if row_format is None or not all(fault.code.is_warning for fault in validate_row(row, row_format)):
        return None
    return to_messages(row, row_format)
