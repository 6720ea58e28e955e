"""The life cycle of a batch: the only writer of its times, from which its status follows.

    validating → in_progress → finalizing → completed
    in_progress | finalizing → expired, with what was completed until then
    validating | in_progress | finalizing → cancelling → cancelled, likewise
    validating | in_progress | … → failed      (faults in the input file, or the run has failed)

The run is not stopped when a batch is cancelled or expires: it writes the files of a batch that ends early,
so that nothing is lost with its worker.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import Session, col

from app.runs import lifecycle as runs
from app.storage.database import database_now
from app.tables import Batch, BatchStatus, Run, RunStatus
from app.webhooks.outbox import record_event

FINAL_TIMES = ("completed_at", "expired_at", "failed_at", "cancelled_at")


def record_progress(
    session: Session, batch_id: str, values: Mapping[str, Any], *, validated: bool, finalizing: bool
) -> None:
    """Record what the program of the run that holds the batch reports.

    A run that was retried after its failure, or after its job was cancelled, opens the batch again.
    """
    times: dict[str, Any] = {"failed_at": None, "cancelled_at": None}
    if validated:
        times["in_progress_at"] = func.coalesce(col(Batch.in_progress_at), database_now())
    if finalizing:
        times["finalizing_at"] = func.coalesce(col(Batch.finalizing_at), database_now())
    unfinished = [col(Batch.completed_at).is_(None), col(Batch.expired_at).is_(None)]
    statement = update(Batch).where(col(Batch.id) == batch_id, *unfinished)
    session.execute(statement.values(**values, **times).execution_options(synchronize_session=False))


def finish(session: Session, batch_id: str, outcome: BatchStatus, values: Mapping[str, Any]) -> None:
    """End a batch with its files; call it in the transaction that ends its run."""
    times: dict[str, Any] = {**dict.fromkeys(FINAL_TIMES), f"{outcome}_at": database_now()}
    statement = update(Batch).where(col(Batch.id) == batch_id)
    session.execute(statement.values(**values, **times).execution_options(synchronize_session=False))
    record_event(session, f"batch.{outcome}", batch_id)


def request_cancel(session: Session, batch: Batch) -> None:
    """Let the run of a batch end early; one that no worker has started, or that is paused, ends at once."""
    batch.cancelling_at = _read_now(session)
    session.flush()
    assert batch.run_id is not None, "a committed batch has a run"
    unstarted = [col(Run.attempt) == 0]
    if runs.move(session, batch.run_id, RunStatus.cancelled, sources=[RunStatus.queued], guards=unstarted):
        session.refresh(batch)
        return
    # A worker writes the files of what was completed.
    runs.move(session, batch.run_id, RunStatus.queued, sources=[RunStatus.paused])


def expire_unstarted(session: Session) -> None:
    """End the batches that expired before a worker had started them; no file is read for that."""
    expired = (
        select(Batch)
        .join(Run, col(Run.id) == col(Batch.run_id))
        .where(
            col(Run.status) == RunStatus.queued,
            col(Run.attempt) == 0,
            col(Batch.expires_at) < database_now(),
        )
        .order_by(col(Batch.id))
    )
    for batch in session.scalars(expired).all():
        assert batch.run_id is not None
        with session.begin_nested() as savepoint:
            # Before the run's end, which would cancel the batch.
            finish(session, batch.id, BatchStatus.expired, {})
            guards = [col(Run.attempt) == 0]
            cancelled = runs.move(
                session, batch.run_id, RunStatus.cancelled, sources=[RunStatus.queued], guards=guards
            )
            if cancelled is None:
                # A worker has claimed it meanwhile, and writes the files of the expired batch.
                savepoint.rollback()


def _read_now(session: Session) -> datetime:
    now: datetime = session.scalars(select(database_now())).one()
    return now
