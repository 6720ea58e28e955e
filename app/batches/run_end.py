"""The end of a batch whose run has ended without a result, in the transaction of that end."""

from sqlalchemy import update
from sqlmodel import Session, col

from app.storage.database import database_now
from app.tables import Batch, Run, RunStatus
from app.webhooks.outbox import record_event
from trainers.configs import StageKind


def end_batch(session: Session, run: Run) -> None:
    """End the batch of a run that has failed or was cancelled; one with a result has ended already."""
    if run.stage is not StageKind.batch or run.status not in (RunStatus.failed, RunStatus.cancelled):
        return
    ends = (Batch.completed_at, Batch.expired_at, Batch.failed_at, Batch.cancelled_at)
    unfinished = [col(end).is_(None) for end in ends]
    # A batch that is being cancelled fails to write its files, and is cancelled nevertheless.
    statement = (
        update(Batch)
        .where(col(Batch.run_id) == run.id, *unfinished)
        .values({f"{run.status}_at": database_now()})
        .returning(col(Batch.id))
        .execution_options(synchronize_session="fetch")
    )
    for batch_id in session.scalars(statement).all():
        record_event(session, f"batch.{run.status}", batch_id)
