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

from sqlalchemy import and_, func, or_, select, update
from sqlmodel import Session, col

from app.runs import lifecycle as runs
from app.storage.database import database_now
from app.tables import Batch, BatchStatus, Run, RunStatus
from app.webhooks.outbox import record_event

_WAITING = (RunStatus.queued, RunStatus.paused)
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


def lock(session: Session, batch_id: str) -> Batch | None:
    """Return a batch as it is now, and keep others from changing it and its run; None if it does not exist.

    The run is locked first, as in every transaction that ends it: otherwise two could wait for each other.
    """
    run_id = session.scalar(select(col(Batch.run_id)).where(col(Batch.id) == batch_id))
    if run_id is not None:
        session.get(Run, run_id, with_for_update=True, populate_existing=True)
    return session.get(Batch, batch_id, with_for_update=True, populate_existing=True)


def request_cancel(session: Session, batch: Batch) -> None:
    """Let the run of a locked batch end early; one that no worker has started ends at once."""
    batch.cancelling_at = _read_now(session)
    session.flush()
    _end_waiting(session, batch, None)


def end_waiting(session: Session) -> None:
    """End the batches that have expired, or were cancelled, while their runs were queued or paused.

    A cancelled batch can have a paused run: its job was paused at the same time, or later.
    """
    expired = col(Batch.expires_at) < database_now()
    started_later = col(Run.status) == RunStatus.paused
    ended = or_(
        and_(expired, or_(col(Run.attempt) == 0, started_later)),
        and_(col(Batch.cancelling_at).is_not(None), started_later),
    )
    statement = (
        select(col(Batch.id))
        .join(Run, col(Run.id) == col(Batch.run_id))
        .where(col(Run.status).in_(_WAITING), ended)
        .order_by(col(Run.id))
    )
    for batch_id in session.scalars(statement).all():
        if (batch := lock(session, batch_id)) is not None and not batch.status.finished:
            is_cancelled = batch.cancelling_at is not None
            _end_waiting(session, batch, None if is_cancelled else BatchStatus.expired)


def _end_waiting(session: Session, batch: Batch, outcome: BatchStatus | None) -> None:
    """End a locked batch whose run waits, with this outcome if it is not that of the cancelled run.

    Of a run that has started, a worker writes the files of what was completed.
    """
    assert batch.run_id is not None, "a committed batch has a run"
    run = session.get_one(Run, batch.run_id)
    if run.status not in _WAITING or run.attempt > 0:
        runs.move(session, run.id, RunStatus.queued, sources=[RunStatus.paused])
        return
    if outcome is not None:
        # Before the run's end, which would cancel the batch.
        finish(session, batch.id, outcome, {})
    runs.move(session, run.id, RunStatus.cancelled, sources=_WAITING)
    session.refresh(batch)


def _read_now(session: Session) -> datetime:
    now: datetime = session.scalars(select(database_now())).one()
    return now
