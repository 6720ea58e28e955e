"""The members of an attempt at a run on several hosts: what each reports, and whether it is still there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, select, update
from sqlmodel import Session, col

from app.runs.lifecycle import StaleAttempt, lease_guards
from app.storage.database import database_now
from app.tables import Run, RunMember, RunStatus, Worker

# A worker kills its program when this share of the lease has passed without a renewal. After that, a member
# is lost to the others as well.
LOST_AT_SHARE = 0.85


@dataclass(frozen=True)
class MemberState:
    """A member of an attempt, as the leader sees it."""

    node_rank: int
    worker_id: str
    worker_name: str
    is_lost: bool
    """Whether it has not renewed its heartbeat for so long that its program has been killed."""
    is_ready: bool
    is_stopping: bool
    has_ended: bool
    error: dict[str, Any] | None


@dataclass(frozen=True)
class AttemptState:
    """The attempt, as a member sees it."""

    status: RunStatus
    has_valid_lease: bool
    """Whether the leader has renewed the lease so recently that its program has not been killed."""
    master_address: str
    master_port: int | None
    """Where the processes meet, once all members are ready."""


def list_members(session: Session, run_id: str, attempt: int, lease_seconds: float) -> list[MemberState]:
    """Return the members of an attempt by their ranks."""
    lost = col(RunMember.expires_at) < database_now((1 - LOST_AT_SHARE) * lease_seconds)
    statement = (
        select(RunMember, lost, col(Worker.name))
        .outerjoin(Worker, col(Worker.id) == col(RunMember.worker_id))
        .where(*_of_attempt(run_id, attempt))
        .order_by(col(RunMember.node_rank))
        .execution_options(populate_existing=True)
    )
    return [
        MemberState(
            node_rank=member.node_rank,
            worker_id=member.worker_id,
            worker_name=name or member.worker_id,
            is_lost=bool(is_lost) and member.ended_at is None,
            is_ready=member.ready_at is not None,
            is_stopping=member.is_stopping,
            has_ended=member.ended_at is not None,
            error=member.error,
        )
        for member, is_lost, name in session.execute(statement)
    ]


def read_attempt(session: Session, run_id: str, attempt: int, lease_seconds: float) -> AttemptState:
    """Return the state of an attempt for a member; raises StaleAttempt if it has ended."""
    valid = col(Run.lease_expires_at) > database_now((1 - LOST_AT_SHARE) * lease_seconds)
    statement = (
        select(col(Run.status), valid, col(RunMember.address), col(RunMember.port))
        .join(RunMember, col(RunMember.run_id) == col(Run.id))
        .where(
            col(Run.id) == run_id,
            col(Run.attempt) == attempt,
            col(RunMember.attempt) == attempt,
            col(RunMember.node_rank) == 0,
        )
    )
    row = session.execute(statement).one_or_none()
    if row is None or not row[0].held:
        raise StaleAttempt(f"attempt {attempt} at {run_id} has ended")
    status, is_valid, address, port = row
    return AttemptState(status, bool(is_valid), address, port)


def renew_member(session: Session, run_id: str, attempt: int, worker_id: str, lease_seconds: float) -> None:
    """Extend the heartbeat of a member; raises StaleAttempt if the attempt or its lease has ended."""
    is_held = exists().where(col(Run.id) == run_id, *lease_guards(attempt))
    values = {"expires_at": database_now(lease_seconds)}
    if not _update(session, run_id, attempt, worker_id, values, is_held):
        raise StaleAttempt(f"attempt {attempt} at {run_id} has ended, or {worker_id} is not a member")


def update_member(session: Session, run_id: str, attempt: int, worker_id: str, **values: Any) -> bool:
    """Write what a member reports; return False if the row is gone with its attempt."""
    return _update(session, run_id, attempt, worker_id, values)


def list_shown_members(session: Session, runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return the members of the last attempts at the runs that are on several hosts, by the run's id."""
    wanted = {run.id: run.attempt for run in runs if run.nodes > 1}
    shown: dict[str, list[dict[str, Any]]] = {run_id: [] for run_id in wanted}
    if not wanted:
        return shown
    statement = (
        select(RunMember, Worker)
        .outerjoin(Worker, col(Worker.id) == col(RunMember.worker_id))
        .where(col(RunMember.run_id).in_(wanted), col(RunMember.node_rank).is_not(None))
        .order_by(col(RunMember.node_rank))
    )
    for member, worker in session.execute(statement):
        if member.attempt == wanted[member.run_id]:
            names = {"worker": worker.name, "host": worker.host} if worker is not None else {}
            shown[member.run_id].append({"worker": None, "host": None, **member.model_dump(), **names})
    return shown


def _update(
    session: Session,
    run_id: str,
    attempt: int,
    worker_id: str,
    values: dict[str, Any],
    *guards: ColumnElement[bool],
) -> bool:
    statement = (
        update(RunMember)
        .where(*_of_attempt(run_id, attempt), col(RunMember.worker_id) == worker_id, *guards)
        .values(**values)
        .returning(col(RunMember.worker_id))
        .execution_options(synchronize_session=False)
    )
    return session.scalar(statement) is not None


def _of_attempt(run_id: str, attempt: int) -> list[ColumnElement[bool]]:
    is_node = col(RunMember.node_rank).is_not(None)
    return [col(RunMember.run_id) == run_id, col(RunMember.attempt) == attempt, is_node]
