"""Files with a purpose: the rows of one for training are a dataset, and of others the bytes are kept."""

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Select, delete, or_, select
from sqlmodel import Session, col

from app.datasets import service as datasets
from app.datasets.form import UploadedFile
from app.downloads.response import Download
from app.downloads.stored_files import read_stored
from app.http.errors import InUse, NotFound, field_error
from app.http.paging import CursorQuery, paginate_by_id
from app.http.text_check import UNSTORABLE
from app.idempotency.creation import Record, ignore_creation
from app.storage.database import database_now, read_session, transaction
from app.storage.opening import get_store
from app.tables import FINISHED, Batch, Dataset, File, FilePurpose, Run
from app.tables.base import new_id
from trainers.configs.base import PRINTABLE_PATTERN, UNPRINTABLE_TEXT
from trainers.data.conversion.csv_table import CsvOptions
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import hash_file

# A dataset keeps no more of a file than this name.
MAX_DATASET_NAME = 200
MAX_FILENAME = 512
BYTES = "application/octet-stream"
# Of the files that this service writes; the names of others are not kept.
MEDIA_TYPES = {".jsonl": datasets.JSONL, ".csv": "text/csv; charset=utf-8"}


class FileNotFound(NotFound):
    """No file has this id."""

    code = ErrorCode.file_not_found


def create_file(
    file: UploadedFile,
    purpose: FilePurpose,
    expires_after_seconds: int | None,
    max_bytes: int,
    record: Record = ignore_creation,
) -> File:
    """Store a file; the rows of one for training become a dataset, with the faults in its report.

    No session is open while the file is read and copied. `record` is called in the transaction that adds the
    row, and prevents it by an exception. Raises UnprocessableContent for its name.
    """
    if (
        len(file.name) > MAX_FILENAME
        or UNSTORABLE.search(file.name)
        or not re.fullmatch(PRINTABLE_PATTERN, file.name)
    ):
        raise field_error(
            "file",
            f"A file name has at most {MAX_FILENAME} characters, and must not contain surrogates, "
            f"{UNPRINTABLE_TEXT}. Rename the file.",
        )
    row = File(filename=file.name, purpose=purpose, size_bytes=file.path.stat().st_size)
    if expires_after_seconds is not None:
        row.expires_at = row.created_at + timedelta(seconds=expires_after_seconds)
    if purpose is FilePurpose.fine_tune:
        name = (Path(file.name).stem or "file")[:MAX_DATASET_NAME]
        dataset, existed = datasets.create_from_upload(file, name, CsvOptions(None, None), max_bytes)
        row.dataset_id, row.owns_dataset = dataset.id, not existed
    else:
        row.artifact, row.sha256 = publish_content(file.path)
    with transaction() as session:
        if row.dataset_id is not None and not row.owns_dataset:
            owners = select(col(File.id)).where(
                col(File.dataset_id) == row.dataset_id, col(File.owns_dataset)
            )
            row.owns_dataset = session.scalar(owners.limit(1)) is not None
        session.add(row)
        record(session, row.id)
    return row


def name_dataset(session: Session, dataset: Dataset, filename: str) -> File:
    """Add a file for training with the rows of a dataset, which stays when the file is deleted."""
    file = File(
        filename=filename[:MAX_FILENAME],
        purpose=FilePurpose.fine_tune,
        size_bytes=dataset.size_bytes,
        dataset_id=dataset.id,
    )
    session.add(file)
    session.flush()
    return file


def publish_content(path: Path) -> tuple[str, str]:
    """Store the bytes of a file that no row names yet; return the artifact's key and hash."""
    # A key is never used twice, or the deletion of an earlier file could remove this one.
    artifact = f"files/{new_id('content')}"
    get_store().publish_file(path, artifact)
    return artifact, hash_file(path)


def list_files(
    session: Session, cursor: CursorQuery, purpose: FilePurpose | None
) -> tuple[Sequence[File], bool]:
    """Return a page of files, and whether more follow."""
    statement = select_files()
    if purpose is not None:
        statement = statement.where(col(File.purpose) == purpose)
    return paginate_by_id(session, statement, col(File.id), cursor)


def get_file(session: Session, file_id: str) -> File:
    """Return a file; raises FileNotFound, also for one that has expired."""
    file = session.scalars(select_files().where(col(File.id) == file_id)).one_or_none()
    if file is None:
        raise FileNotFound(f"There is no file {file_id!r}.", hint="List the files with GET /v1/files.")
    return file


def find_files(session: Session, ids: Iterable[str | None]) -> dict[str, File]:
    """Return the files with these ids that still exist, by id."""
    statement = select_files().where(col(File.id).in_({id for id in ids if id is not None}))
    return {file.id: file for file in session.scalars(statement)}


def get_dataset(session: Session, file: File) -> Dataset | None:
    """Return the dataset with the rows of a file, also a deleted one; None if it has none."""
    return session.get(Dataset, file.dataset_id) if file.dataset_id is not None else None


def list_datasets(session: Session, files: Sequence[File]) -> dict[str | None, Dataset]:
    """Return the datasets with the rows of files, by their ids."""
    ids = {file.dataset_id for file in files if file.dataset_id is not None}
    return {
        dataset.id: dataset for dataset in session.scalars(select(Dataset).where(col(Dataset.id).in_(ids)))
    }


def delete_file(file_id: str) -> None:
    """Delete a file, and the dataset that it owns alone; the bytes disappear with the next collection.

    Raises FileNotFound, and InUse while an unfinished batch reads the file, or an unfinished job the dataset.
    """
    with transaction() as session:
        _delete(session, get_file(session, file_id))


def delete_expired(file_id: str) -> None:
    """Delete a file that has expired, if it is still there; raises InUse while an unfinished job reads it."""
    with transaction() as session:
        if (file := session.get(File, file_id)) is not None:
            _delete(session, file)


def find_content(file_id: str) -> Download:
    """Return the bytes of a file, to send; raises FileNotFound and DatasetNotFound."""
    with read_session() as session:
        file = get_file(session, file_id)
    if file.dataset_id is not None:
        return datasets.find_content(file.dataset_id)
    artifact, sha256 = file.artifact, file.sha256
    assert artifact is not None and sha256 is not None, "a file has a dataset or an artifact"
    suffix = Path(file.filename).suffix
    return Download(
        filename=f"{file.id}{suffix}" if suffix in MEDIA_TYPES else file.id,
        media_type=MEDIA_TYPES.get(suffix, BYTES),
        size_bytes=file.size_bytes,
        etag=f'"{sha256}"',
        open=lambda part: read_stored(artifact, sha256, part),
    )


def fetch_content(file: File) -> Path:
    """Return a file with the bytes on this host, verified; raises DatasetNotFound and ArtifactCorrupt."""
    if file.dataset_id is None:
        assert file.artifact is not None and file.sha256 is not None, "a file has a dataset or an artifact"
        return get_store().fetch_file(file.artifact, file.sha256)
    with read_session() as session:
        dataset = datasets.get_dataset(session, file.dataset_id)
    return get_store().fetch_file(dataset.artifact, dataset.sha256)


def _check_unused(session: Session, file: File) -> None:
    statement = select(col(Batch.id)).join(Run, col(Run.id) == col(Batch.run_id))
    unfinished = col(Batch.input_file_id) == file.id, col(Run.status).not_in(FINISHED)
    if batches := session.scalars(statement.where(*unfinished)).all():
        raise InUse(
            f"The file {file.id} is the input of the unfinished batch {batches[0]}.",
            hint="Wait until the batch has ended, or cancel it.",
            used_by=list(batches),
        )


def select_files() -> Select[File]:
    """Return the query of all files that have not expired."""
    return select(File).where(or_(col(File.expires_at).is_(None), col(File.expires_at) > database_now()))


def _delete(session: Session, file: File) -> None:
    _check_unused(session, file)
    session.execute(delete(File).where(col(File.id) == file.id))
    others = select(col(File.id)).where(col(File.dataset_id) == file.dataset_id).limit(1)
    if file.dataset_id is None or not file.owns_dataset or session.scalar(others) is not None:
        return
    try:
        datasets.delete_dataset(session, file.dataset_id)
    except datasets.DatasetNotFound:
        return
    except InUse as error:
        raise InUse(
            f"The file {file.id} is used: {error.message}", hint=error.hint, used_by=error.used_by
        ) from None
