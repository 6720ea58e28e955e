"""The claim of a run on several hosts: workers offer themselves, and the last one that is needed claims it.

Every transaction locks the run's row before the rows of its members, and a worker withdraws in a transaction
of its own, so that none waits for another in a circle.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, select, update
from sqlmodel import Session, col

from app.runs import lifecycle
from app.runs.claimable import select_claimable
from app.settings import Settings
from app.storage.database import database_now
from app.tables import Run, RunMember, RunStatus, Worker
from app.workers.service import MAX_MISSED_HEARTBEATS, is_alive
from trainers.configs import Queue


@dataclass(frozen=True)
class NodeOffer:
    """A worker's offer to take part in the next attempt at a run."""

    run_id: str
    attempt: int
    worker_id: str
    address: str


def offer(session: Session, settings: Settings, made: NodeOffer) -> Run | None:
    """Write or renew an offer; return the run if that completes its group, which this worker then leads.

    An offer for an attempt that has begun, or for a run that cannot start any more, has no effect.
    """
    startable = select_claimable(list(Queue)).where(
        col(Run.id) == made.run_id, col(Run.attempt) == made.attempt - 1
    )
    # Without SKIP LOCKED: of two workers that complete a group at once, the second must see the first.
    run_id = session.scalar(startable.with_for_update(of=Run))
    if run_id is None:
        return None
    run = session.get_one(Run, run_id, populate_existing=True)
    _write(session, made, MAX_MISSED_HEARTBEATS * settings.heartbeat_seconds)
    members = _lock_offers(session, settings, made, run.nodes - 1)
    if len(members) < run.nodes - 1:
        return None
    claimed = lifecycle.claim_group(session, made.run_id, made.worker_id, settings.lease_seconds)
    assert claimed is not None, "the run is locked, and was claimable"
    for rank, worker_id in enumerate([made.worker_id, *members]):
        _update(session, made, worker_id, node_rank=rank, expires_at=database_now(settings.lease_seconds))
    return claimed


def find_rank(session: Session, made: NodeOffer) -> tuple[bool, int | None]:
    """Return whether an offer still stands or was accepted, and in the second case the node's rank."""
    statement = (
        select(col(RunMember.node_rank), col(Run.status), col(Run.attempt))
        .join(Run, col(Run.id) == col(RunMember.run_id))
        .where(*_of(made, made.worker_id))
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return False, None
    rank, status, attempt = row
    if rank is None:
        return status is RunStatus.queued and attempt == made.attempt - 1, None
    return attempt == made.attempt and status.held, rank


def withdraw(session: Session, made: NodeOffer) -> bool:
    """End an offer; return False if it was accepted before."""
    is_offer = col(RunMember.node_rank).is_(None)
    # The row goes with its job: a role that may delete rows of a table may also lock the table.
    ended = update(RunMember).where(*_of(made, made.worker_id), is_offer).values(expires_at=None)
    session.execute(ended.execution_options(synchronize_session=False))
    rank = select(col(RunMember.node_rank)).where(*_of(made, made.worker_id))
    return session.scalar(rank) is None


def _write(session: Session, made: NodeOffer, seconds: float) -> None:
    if not _update(session, made, made.worker_id, expires_at=database_now(seconds)):
        row = RunMember(
            run_id=made.run_id, attempt=made.attempt, worker_id=made.worker_id, address=made.address
        )
        session.add(row)
        session.flush()
        _update(session, made, made.worker_id, expires_at=database_now(seconds))


def _lock_offers(session: Session, settings: Settings, made: NodeOffer, count: int) -> list[str]:
    """Return the workers of the oldest valid offers of others, whose rows are then locked."""
    statement = (
        select(col(RunMember.worker_id))
        .join(Worker, col(Worker.id) == col(RunMember.worker_id))
        .where(
            col(RunMember.run_id) == made.run_id,
            col(RunMember.attempt) == made.attempt,
            col(RunMember.worker_id) != made.worker_id,
            col(RunMember.node_rank).is_(None),
            col(RunMember.expires_at) > database_now(),
            is_alive(settings),
        )
        .order_by(col(RunMember.created_at), col(RunMember.worker_id))
        .limit(count)
        .with_for_update(of=RunMember)
    )
    return list(session.scalars(statement))


def _update(session: Session, made: NodeOffer, worker_id: str, **values: object) -> bool:
    statement = update(RunMember).where(*_of(made, worker_id)).values(**values)
    statement = statement.returning(col(RunMember.worker_id)).execution_options(synchronize_session=False)
    return session.scalar(statement) is not None


def _of(made: NodeOffer, worker_id: str) -> list[ColumnElement[bool]]:
    return [
        col(RunMember.run_id) == made.run_id,
        col(RunMember.attempt) == made.attempt,
        col(RunMember.worker_id) == worker_id,
    ]
