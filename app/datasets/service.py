"""Datasets: stored once by their content, validated once, never changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from app.datasets.schemas import DatasetRowView, DatasetSummaryView, DatasetView, PreviewCreate
from app.http.errors import NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.models import references
from app.settings import get_settings
from app.storage.artifacts import get_store, hash_file
from app.storage.database import read_session, transaction
from app.tables import Dataset, Job
from trainers.configs import PrepareConfig
from trainers.data.checks import validate_row
from trainers.data.conversation import to_messages
from trainers.data.files.jsonl import read_rows
from trainers.data.formats import RowFormat
from trainers.data.validate import validate_file
from trainers.runtime.error_codes import ErrorCode


class DatasetNotFound(NotFound):
    """No dataset has this id."""

    code = ErrorCode.dataset_not_found


def store_file(path: Path, name: str) -> tuple[Dataset, bool]:
    """Keep a file with its validation report; with True if its content was there before.

    A file with faults is kept too, so that its report can be read. No session is open while the file
    is read and copied.
    """
    sha256 = hash_file(path)
    if (before := _by_content(sha256)) is not None:
        return before, True
    report = validate_file(path)
    artifact = f"datasets/{sha256}.jsonl"
    get_store().publish_file(path, artifact)
    dataset = Dataset(
        name=name,
        sha256=sha256,
        artifact=artifact,
        size_bytes=path.stat().st_size,
        format=report.format,
        row_count=report.row_count,
        fault_count=report.fault_count,
        report=report.model_dump(mode="json"),
    )
    try:
        with transaction() as session:
            session.add(dataset)
    except IntegrityError:
        # The same content was uploaded twice at once; the other upload's row stands.
        winner = _by_content(sha256)
        assert winner is not None, "only the content's hash can collide"
        return winner, True
    return dataset, False


def page(
    session: Session, paging: PageQuery, name: str | None, row_format: RowFormat | None
) -> tuple[Sequence[DatasetSummaryView], str | None]:
    """Datasets from new to old."""
    statement = select(Dataset)
    if name is not None:
        statement = statement.where(col(Dataset.name) == name)
    if row_format is not None:
        statement = statement.where(col(Dataset.format) == row_format)
    rows, after = paginate_newest_first(session, statement, col(Dataset.id), paging)
    return [DatasetSummaryView.model_validate(row) for row in rows], after


def get(session: Session, dataset_id: str) -> Dataset:
    """One dataset; raises DatasetNotFound."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise DatasetNotFound(
            f"There is no dataset {dataset_id}.", hint="List them with GET /api/v1/datasets."
        )
    return dataset


def view(dataset: Dataset) -> DatasetView:
    """The dataset with its report."""
    return DatasetView.model_validate(dataset)


def rows(dataset_id: str, offset: int, limit: int) -> list[DatasetRowView]:
    """Readable rows of the file with their line numbers; raises DatasetNotFound."""
    dataset = _read(dataset_id)
    path = get_store().fetch_file(dataset.artifact, dataset.sha256, get_settings().data_dir / "cache")
    return [_row(line, row, dataset.format) for line, row in read_rows(path, offset=offset, limit=limit)]


def content(dataset_id: str) -> BinaryIO:
    """The file as it was uploaded; raises DatasetNotFound."""
    return get_store().open(_read(dataset_id).artifact)


def preview(session: Session, dataset_id: str, body: PreviewCreate, created_by: str) -> Job:
    """Queue a short run that renders rows with a model's template; raises what posting a job raises."""
    dataset = get(session, dataset_id)
    # The job would tell a fault under a field that was never sent.
    references.resolve_model(session, body.model, "model")
    stage = PrepareConfig(
        stage="prepare", base=body.model, dataset=dataset.id, rows=body.rows, max_length=body.max_length
    )
    spec = JobCreate(name=f"preview of {dataset.name}"[:200], priority=100, queue=body.queue, stages=[stage])
    job, _ = jobs.post(session, get_settings(), spec, created_by, None)
    return job


def _by_content(sha256: str) -> Dataset | None:
    with read_session() as session:
        return session.exec(select(Dataset).where(col(Dataset.sha256) == sha256)).one_or_none()


def _read(dataset_id: str) -> Dataset:
    with read_session() as session:
        return get(session, dataset_id)


def _row(line: int, row: dict[str, object], row_format: RowFormat | None) -> DatasetRowView:
    if row_format is None or not all(fault.code.is_warning for fault in validate_row(row, row_format)):
        return DatasetRowView(line=line, row=row, messages=None)
    return DatasetRowView(line=line, row=row, messages=to_messages(row, row_format))
