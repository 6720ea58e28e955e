"""Uploads in parts. A part is stored when it arrives, and the file is joined when the upload is completed."""

import hashlib
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlmodel import Session, col

from app.datasets.form import UploadedFile
from app.datasets.upload import upload_folder
from app.files import service as files
from app.http.errors import HttpError, NotFound, PayloadTooLarge, field_error
from app.idempotency.creation import Record
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.tables import File, Upload, UploadPart, UploadStatus
from app.tables.base import utc_now
from trainers.runtime.error_codes import ErrorCode

LIFETIME_SECONDS = 3600
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 10_000
# With those that were sent again after an error.
MAX_STORED_PARTS = 2 * MAX_PARTS
# In OpenAI's API as well: a path of the client's is kept out of errors and file names.
JOINED_NAME = "joined"


class UploadNotFound(NotFound):
    """No upload has this id."""

    code = ErrorCode.upload_not_found


class UploadNotPending(HttpError):
    """The upload was completed or cancelled, or has expired."""

    code = ErrorCode.upload_not_pending


class _EndedMeanwhile(Exception):
    """Another request has ended the upload, so that this one must not add its file."""


def create_upload(settings: Settings, upload: Upload, record: Record) -> str:
    """Begin an upload and return its id; raises PayloadTooLarge if it is to be larger than a file may be."""
    if upload.size_bytes > settings.max_upload_bytes:
        raise PayloadTooLarge(
            f"bytes: The upload is larger than {settings.max_upload_bytes} bytes.",
            hint="Split the file, or raise TUNESMITH_MAX_UPLOAD_BYTES.",
            fields=[{"field": "bytes", "message": "It is too large."}],
        )
    upload.expires_at = upload.created_at + timedelta(seconds=LIFETIME_SECONDS)
    with transaction() as session:
        session.add(upload)
        record(session, upload.id)
    return upload.id


def add_part(upload_id: str, path: Path, record: Record) -> UploadPart:
    """Store the bytes of a part; raises UploadNotFound, UploadNotPending and PayloadTooLarge.

    No session is open while the bytes are copied. `record` is called in the transaction that adds the row.
    """
    with read_session() as session:
        _require_room(session, upload_id, path.stat().st_size)
    artifact, sha256 = files.publish_content(path)
    part = UploadPart(upload_id=upload_id, artifact=artifact, sha256=sha256, size_bytes=path.stat().st_size)
    with transaction() as session:
        # The lock makes parts that arrive at the same time count each other.
        session.get_one(Upload, upload_id, with_for_update=True)
        _require_room(session, upload_id, part.size_bytes)
        session.add(part)
        record(session, part.id)
    return part


def complete_upload(
    settings: Settings, upload_id: str, part_ids: Sequence[str], md5: str | None
) -> tuple[Upload, File]:
    """Join the parts in this order to a file; return it with the upload. A second call returns the same file.

    Raises UploadNotFound, UploadNotPending, and UnprocessableContent if the parts are not those of the
    upload, or if their size or hash is not the announced one.
    """
    with read_session() as session:
        upload = get_upload(session, upload_id)
        if upload.status is UploadStatus.completed:
            return upload, _get_file(session, upload)
        _require_pending(upload)
        parts = _find_parts(session, upload, part_ids)
    with upload_folder(settings.data_dir / "uploads") as folder:
        path = folder / JOINED_NAME
        digest = _join(parts, path)
        if md5 is not None and digest != md5.lower():
            raise field_error("md5", f"The parts have the MD5 {digest}, but {md5} was expected.")
        content = UploadedFile(path, upload.filename)
        expires_after_seconds = upload.file_expires_after_seconds
        try:
            # The upload ends in the transaction that adds the file: neither is without the other.
            file = files.create_file(
                content,
                upload.purpose,
                expires_after_seconds,
                settings.max_upload_bytes,
                lambda session, file_id: _complete(session, upload_id, file_id),
            )
        except _EndedMeanwhile:
            with read_session() as session:
                upload = get_upload(session, upload_id)
                if upload.status is not UploadStatus.completed:
                    _require_pending(upload)
                return upload, _get_file(session, upload)
    upload.status, upload.file_id = UploadStatus.completed, file.id
    return upload, file


def cancel_upload(upload_id: str) -> Upload:
    """Cancel an upload, also a second time; raises UploadNotFound and UploadNotPending."""
    with transaction() as session:
        ended = _end(session, upload_id, UploadStatus.cancelled, None)
    if not ended:
        with read_session() as session:
            upload = get_upload(session, upload_id)
        if upload.status is not UploadStatus.cancelled:
            _require_pending(upload)
    with read_session() as session:
        return get_upload(session, upload_id)


def get_upload(session: Session, upload_id: str) -> Upload:
    """Return an upload; raises UploadNotFound."""
    upload = session.get(Upload, upload_id)
    if upload is None:
        raise UploadNotFound(f"There is no upload {upload_id!r}.", hint="Create one with POST /v1/uploads.")
    return upload


def get_part(session: Session, part_id: str) -> UploadPart:
    """Return a part of an upload; raises UploadNotFound if its upload was deleted meanwhile."""
    part = session.get(UploadPart, part_id)
    if part is None:
        raise UploadNotFound(f"There is no part {part_id!r} any more.", hint="Create another upload.")
    return part


def is_expired(upload: Upload, now: datetime) -> bool:
    """Return whether the upload was pending at its expiry."""
    return upload.status is UploadStatus.pending and upload.expires_at <= now


def _require_pending(upload: Upload) -> None:
    state = "expired" if is_expired(upload, utc_now()) else upload.status.value
    if state != UploadStatus.pending:
        raise UploadNotPending(f"The upload {upload.id} is {state}.", hint="Create another one.")


def _require_room(session: Session, upload_id: str, size_bytes: int) -> None:
    upload = get_upload(session, upload_id)
    _require_pending(upload)
    sizes = select(func.count(), func.sum(col(UploadPart.size_bytes)))
    n_parts, stored_bytes = session.execute(sizes.where(col(UploadPart.upload_id) == upload_id)).one()
    total = int(stored_bytes or 0) + size_bytes
    if n_parts >= MAX_STORED_PARTS:
        raise field_error("data", f"The upload {upload_id} has {n_parts} parts already, the most possible.")
    # Parts that were sent again after an error count as well.
    if total > 2 * upload.size_bytes + MAX_PART_BYTES:
        raise PayloadTooLarge(
            f"The parts of {upload_id} have {total} bytes, but {upload.size_bytes} were announced.",
            fields=[{"field": "data", "message": "It is too large."}],
        )


def _find_parts(session: Session, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    stored = select(UploadPart).where(col(UploadPart.upload_id) == upload.id)
    by_id = {part.id: part for part in session.scalars(stored)}
    for position, part_id in enumerate(part_ids):
        if part_id not in by_id:
            raise field_error(f"part_ids.{position}", f"The upload {upload.id} has no part {part_id!r}.")
    if len(set(part_ids)) < len(part_ids):
        raise field_error("part_ids", "A part is named twice.")
    parts = [by_id[part_id] for part_id in part_ids]
    total = sum(part.size_bytes for part in parts)
    if total != upload.size_bytes:
        raise field_error(
            "part_ids", f"The parts have {total} bytes, but the upload announced {upload.size_bytes}."
        )
    return parts


def _join(parts: Sequence[UploadPart], path: Path) -> str:
    """Write the parts one after the other; return the MD5 of them all, as 32 hexadecimal digits."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as joined:
        for part in parts:
            with get_store().open(part.artifact, part.sha256) as source:
                shutil.copyfileobj(source, joined, 1 << 20)
    with path.open("rb") as joined:
        while chunk := joined.read(1 << 20):
            md5.update(chunk)
    return md5.hexdigest()


def _complete(session: Session, upload_id: str, file_id: str) -> None:
    """Complete a pending upload; raises _EndedMeanwhile if another request has completed or cancelled it."""
    if not _end(session, upload_id, UploadStatus.completed, file_id):
        raise _EndedMeanwhile


def _end(session: Session, upload_id: str, status: UploadStatus, file_id: str | None) -> bool:
    """End a pending upload; return False if it is not pending any more."""
    pending = col(Upload.id) == upload_id, col(Upload.status) == UploadStatus.pending
    statement = update(Upload).where(*pending, col(Upload.expires_at) > utc_now())
    statement = statement.values(status=status, file_id=file_id).returning(col(Upload.id))
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None


def _get_file(session: Session, upload: Upload) -> File:
    assert upload.file_id is not None, "a completed upload has a file"
    return files.get_file(session, upload.file_id)
