"""Retention of stored chat completions and responses."""

from collections.abc import Callable, Iterator

from sqlalchemy import delete, select
from sqlmodel import col

from app.retention.report import Removal, RemovalReason
from app.storage.database import database_now, read_session, transaction
from app.tables import StoredCompletion, StoredResponse

# Their texts may be large, and another writer must not wait long for the transaction.
BATCH = 500


def delete_expired_answers(renew: Callable[[], None], *, dry_run: bool) -> Iterator[Removal]:
    """Delete the stored answers whose time is over, in batches."""
    for table in (StoredCompletion, StoredResponse):
        expired = select(col(table.id)).where(col(table.expires_at) <= database_now())
        expired = expired if dry_run else expired.limit(BATCH)
        while True:
            renew()
            with read_session() as session:
                ids = session.scalars(expired).all()
            if ids and not dry_run:
                with transaction() as session:
                    session.execute(delete(table).where(col(table.id).in_(ids)))
            yield from (Removal(reason=RemovalReason.record_expired, name=row_id) for row_id in ids)
            if dry_run or len(ids) < BATCH:
                break
