"""Retention of files with an expiry, and of the parts of uploads that have ended."""

from collections.abc import Iterator

from sqlalchemy import delete, or_, select
from sqlmodel import col

from app.files import service as files
from app.http.errors import InUse
from app.retention.report import Removal, RemovalReason
from app.storage.database import database_now, read_session, transaction
from app.tables import File, Upload, UploadPart, UploadStatus

BATCH = 500


def delete_expired_files(*, dry_run: bool) -> Iterator[Removal]:
    """Delete the files whose time is over, apart from one that an unfinished job reads."""
    expired = select(col(File.id), col(File.size_bytes)).where(col(File.expires_at) <= database_now())
    with read_session() as session:
        rows = session.execute(expired.order_by(col(File.id)).limit(BATCH)).all()
    for file_id, size_bytes in rows:
        try:
            if not dry_run:
                files.delete_expired(file_id)
        except InUse:
            continue
        yield Removal(reason=RemovalReason.record_expired, name=file_id, size_bytes=size_bytes)


def delete_upload_parts(*, dry_run: bool) -> Iterator[Removal]:
    """Delete the parts of uploads that were completed or cancelled, or have expired."""
    is_over = or_(col(Upload.status) != UploadStatus.pending, col(Upload.expires_at) <= database_now())
    ended = select(col(UploadPart.id), col(UploadPart.size_bytes)).join(
        Upload, col(Upload.id) == col(UploadPart.upload_id)
    )
    with read_session() as session:
        rows = session.execute(ended.where(is_over).limit(BATCH)).all()
    if rows and not dry_run:
        of_rows = col(UploadPart.id).in_([part_id for part_id, _ in rows])
        with transaction() as session:
            session.execute(delete(UploadPart).where(of_rows))
    for part_id, size_bytes in rows:
        yield Removal(reason=RemovalReason.record_expired, name=part_id, size_bytes=size_bytes)
