"""Retention of files with an expiry, of the parts of uploads that have ended, and of old uploads."""

from collections.abc import Callable, Iterator

from sqlalchemy import delete, or_, select
from sqlmodel import col

from app.files import service as files
from app.http.errors import InUse
from app.retention.report import Removal, RemovalReason
from app.storage.database import database_now, read_session, transaction
from app.tables import File, Upload, UploadPart, UploadStatus

BATCH = 500
# A client may ask again for the file of an upload that it has completed.
UPLOAD_SECONDS = 30 * 24 * 3600


def delete_expired_files(renew: Callable[[], None], *, dry_run: bool) -> Iterator[Removal]:
    """Delete the files whose time is over, apart from one that an unfinished job reads."""
    expired = select(col(File.id), col(File.size_bytes)).where(col(File.expires_at) <= database_now())
    last_id = ""
    while True:
        renew()
        following = expired.where(col(File.id) > last_id).order_by(col(File.id)).limit(BATCH)
        with read_session() as session:
            rows = session.execute(following).all()
        for file_id, size_bytes in rows:
            last_id = file_id
            try:
                if not dry_run:
                    files.delete_expired(file_id)
            except InUse:
                continue
            yield Removal(reason=RemovalReason.record_expired, name=file_id, size_bytes=size_bytes)
        if len(rows) < BATCH:
            return


def delete_upload_parts(renew: Callable[[], None], *, dry_run: bool) -> Iterator[Removal]:
    """Delete the parts of uploads that were completed or cancelled, or have expired."""
    is_over = or_(col(Upload.status) != UploadStatus.pending, col(Upload.expires_at) <= database_now())
    ended = (
        select(col(UploadPart.id), col(UploadPart.size_bytes))
        .join(Upload, col(Upload.id) == col(UploadPart.upload_id))
        .where(is_over)
        .order_by(col(UploadPart.id))
    )
    last_id = ""
    while True:
        renew()
        with read_session() as session:
            rows = session.execute(ended.where(col(UploadPart.id) > last_id).limit(BATCH)).all()
        if rows and not dry_run:
            of_rows = col(UploadPart.id).in_([part_id for part_id, _ in rows])
            with transaction() as session:
                session.execute(delete(UploadPart).where(of_rows))
        for part_id, size_bytes in rows:
            last_id = part_id
            yield Removal(reason=RemovalReason.record_expired, name=part_id, size_bytes=size_bytes)
        if len(rows) < BATCH:
            return


def delete_old_uploads(*, dry_run: bool) -> Iterator[Removal]:
    """Delete uploads that expired or were completed long ago, and have no part left."""
    parts = select(col(UploadPart.id)).where(col(UploadPart.upload_id) == col(Upload.id))
    is_old = col(Upload.expires_at) <= database_now(-UPLOAD_SECONDS)
    with read_session() as session:
        ids = session.scalars(select(col(Upload.id)).where(is_old, ~parts.exists()).limit(BATCH)).all()
    if ids and not dry_run:
        with transaction() as session:
            session.execute(delete(Upload).where(col(Upload.id).in_(ids)))
    yield from (Removal(reason=RemovalReason.record_expired, name=upload_id) for upload_id in ids)
