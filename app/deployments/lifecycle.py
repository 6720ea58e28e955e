"""The life of a deployment: the only writer of its status.

    queued → starting → ready → stopping → stopped
    starting | ready → starting    (the engine died and is started again)
    starting | ready → queued      (the worker left or lost its lease)
    starting → failed              (the engine does not start, or does not serve what was trained)
    ready → asleep → queued        (idle, or room was needed; a request wakes it)

As with runs, each change is one guarded UPDATE, and a worker's writes carry the attempt that holds it.
A name has one holder, which serves it, and at most one that is to take the name over when it is ready.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.runs.lifecycle import StaleAttempt
from app.storage.database import database_now
from app.tables import Deployment, DeploymentStatus
from trainers.configs import Queue

LIVE = (
    DeploymentStatus.queued,
    DeploymentStatus.starting,
    DeploymentStatus.ready,
    DeploymentStatus.asleep,
)
HELD = (DeploymentStatus.starting, DeploymentStatus.ready, DeploymentStatus.stopping)
# So long others leave a deployment to the worker that has its base in memory.
PRECEDENCE_SECONDS = 5.0


class DeploymentState(NamedTuple):
    """What its worker has to know of a deployment that it holds; times are the database's."""

    id: str
    status: DeploymentStatus
    last_used_at: datetime | None
    ready_at: datetime | None
    now: datetime


def list_claimable(session: Session, worker_id: str, queues: Sequence[Queue]) -> Sequence[Deployment]:
    """Deployments that a worker of these queues may claim now, from old to new."""
    return session.scalars(
        select(Deployment)
        .where(*_claimable(worker_id), col(Deployment.queue).in_(queues))
        .order_by(col(Deployment.id))
    ).all()


def claim(session: Session, deployment_id: str, worker_id: str, lease_seconds: float) -> Deployment | None:
    """Take a deployment that waits; None when another was faster or goes first."""
    return _update(
        session,
        deployment_id,
        _claimable(worker_id),
        status=DeploymentStatus.starting,
        attempt=col(Deployment.attempt) + 1,
        worker_id=worker_id,
        lease_expires_at=database_now(lease_seconds),
        error=None,
    )


def load_states(session: Session, deployment_ids: Sequence[str]) -> list[DeploymentState]:
    """How deployments stand by the database."""
    columns = (
        col(Deployment.id),
        col(Deployment.status),
        col(Deployment.last_used_at),
        col(Deployment.ready_at),
        database_now(),
    )
    rows = session.execute(select(*columns).where(col(Deployment.id).in_(deployment_ids)))
    return [DeploymentState(*row) for row in rows]


def renew(session: Session, deployment_id: str, attempt: int, lease_seconds: float) -> None:
    """Lengthen the lease; raises StaleAttempt when the attempt no longer holds the deployment."""
    renewed = _update(session, deployment_id, _held_by(attempt), lease_expires_at=database_now(lease_seconds))
    if renewed is None:
        raise StaleAttempt(f"attempt {attempt} no longer holds {deployment_id}")


def mark_ready(
    session: Session,
    deployment_id: str,
    attempt: int,
    address: str,
    upstream_model: str,
    parity: dict[str, Any] | None = None,
) -> bool:
    """Open the deployment to requests and give it its name; False when it was told to stop meanwhile."""
    moved = _moved(
        session,
        deployment_id,
        attempt,
        (DeploymentStatus.starting,),
        status=DeploymentStatus.ready,
        address=address,
        upstream_model=upstream_model,
        parity=parity,
        ready_at=database_now(),
        error=None,
    )
    if moved:
        _take_name(session, deployment_id)
    return moved


def mark_restarting(session: Session, deployment_id: str, attempt: int, error: dict[str, Any]) -> bool:
    """Close the deployment to requests while its engine is started again."""
    return _moved(
        session,
        deployment_id,
        attempt,
        (DeploymentStatus.starting, DeploymentStatus.ready),
        status=DeploymentStatus.starting,
        address=None,
        restart_count=col(Deployment.restart_count) + 1,
        error=error,
    )


def sleep(session: Session, deployment_id: str, attempt: int) -> bool:
    """Keep the deployment without an engine; False when it was told to stop meanwhile."""
    values = {"status": DeploymentStatus.asleep, **_unheld()}
    return _moved(session, deployment_id, attempt, (DeploymentStatus.ready,), **values)


def wake(session: Session, deployment_id: str) -> Deployment | None:
    """Ask for an engine for a sleeping deployment; None when it does not sleep."""
    asleep = [col(Deployment.status) == DeploymentStatus.asleep]
    return _update(
        session,
        deployment_id,
        asleep,
        status=DeploymentStatus.queued,
        queued_at=database_now(),
        last_used_at=database_now(),
    )


def end(
    session: Session,
    deployment_id: str,
    attempt: int,
    error: dict[str, Any] | None,
    parity: dict[str, Any] | None = None,
) -> bool:
    """The engine is gone for good: stopped on request, or failed with an error."""
    status = DeploymentStatus.failed if error else DeploymentStatus.stopped
    found = {"parity": parity} if parity is not None else {}
    return _moved(session, deployment_id, attempt, HELD, status=status, error=error, **found, **_released())


def release(session: Session, deployment_id: str, attempt: int) -> bool:
    """The worker leaves: another may take the deployment."""
    sources = (DeploymentStatus.starting, DeploymentStatus.ready)
    return _moved(session, deployment_id, attempt, sources, status=DeploymentStatus.queued, **_waiting())


def stop(session: Session, deployment_id: str) -> Deployment | None:
    """Ask for the end: at once if no worker has it, else when its worker has stopped the engine."""
    unheld = [col(Deployment.status).in_((DeploymentStatus.queued, DeploymentStatus.asleep))]
    held = [col(Deployment.status).in_((DeploymentStatus.starting, DeploymentStatus.ready))]
    return _update(session, deployment_id, unheld, status=DeploymentStatus.stopped, **_released()) or _update(
        session, deployment_id, held, status=DeploymentStatus.stopping
    )


def release_expired(session: Session) -> int:
    """Take deployments away from workers that have not renewed in time; answers how many."""
    lapsed = col(Deployment.lease_expires_at) < database_now()
    stopping = col(Deployment.status) == DeploymentStatus.stopping
    statements = (
        update(Deployment).where(lapsed, stopping).values(status=DeploymentStatus.stopped, **_released()),
        update(Deployment)
        .where(lapsed, col(Deployment.status).in_((DeploymentStatus.starting, DeploymentStatus.ready)))
        .values(status=DeploymentStatus.queued, **_waiting()),
    )
    options = {"synchronize_session": False}
    return sum(
        len(session.scalars(statement.returning(col(Deployment.id)), execution_options=options).all())
        for statement in statements
    )


def _take_name(session: Session, deployment_id: str) -> None:
    """Stop the deployment of the same name, if there is one, and be its only holder."""
    name = select(col(Deployment.name)).where(col(Deployment.id) == deployment_id).scalar_subquery()
    others = select(col(Deployment.id)).where(
        col(Deployment.name) == name,
        col(Deployment.status).in_(LIVE),
        col(Deployment.id) != deployment_id,
        col(Deployment.replaces).is_(None),
    )
    following = col(Deployment.replaces).is_not(None)
    if session.scalar(select(col(Deployment.id)).where(col(Deployment.id) == deployment_id, following)):
        for other in session.scalars(others).all():
            stop(session, other)
        _update(session, deployment_id, [], replaces=None)


def _claimable(worker_id: str) -> list[ColumnElement[bool]]:
    """True of a deployment that waits and is not for now another worker's to take."""
    hosted = aliased(Deployment)
    elsewhere = exists().where(
        col(hosted.engine_key) == col(Deployment.engine_key),
        col(hosted.engine_key) != "",
        col(hosted.worker_id) != worker_id,
        col(hosted.status).in_((DeploymentStatus.starting, DeploymentStatus.ready)),
        col(hosted.lease_expires_at) > database_now(),
    )
    since = func.coalesce(col(Deployment.queued_at), col(Deployment.created_at))
    overdue = since < database_now(-PRECEDENCE_SECONDS)
    return [col(Deployment.status) == DeploymentStatus.queued, or_(~elsewhere, overdue)]


def _unheld() -> dict[str, Any]:
    return {"worker_id": None, "lease_expires_at": None, "address": None, "upstream_model": None}


def _waiting() -> dict[str, Any]:
    return {**_unheld(), "queued_at": database_now()}


def _released() -> dict[str, Any]:
    return {**_unheld(), "stopped_at": database_now()}


def _moved(
    session: Session, deployment_id: str, attempt: int, sources: Sequence[DeploymentStatus], **values: Any
) -> bool:
    """Whether the attempt could move the deployment; raises StaleAttempt when it does not hold it at all."""
    guards = [*_held_by(attempt), col(Deployment.status).in_(sources)]
    if _update(session, deployment_id, guards, **values) is not None:
        return True
    held = select(col(Deployment.id)).where(col(Deployment.id) == deployment_id, *_held_by(attempt))
    if session.scalar(held) is None:
        raise StaleAttempt(f"attempt {attempt} no longer holds {deployment_id}")
    return False


def _held_by(attempt: int) -> list[ColumnElement[bool]]:
    return [
        col(Deployment.attempt) == attempt,
        col(Deployment.status).in_(HELD),
        col(Deployment.lease_expires_at) > database_now(),
    ]


def _update(
    session: Session, deployment_id: str, guards: Sequence[ColumnElement[bool]], /, **values: Any
) -> Deployment | None:
    statement = (
        update(Deployment)
        .where(col(Deployment.id) == deployment_id, *guards)
        .values(**values)
        .returning(Deployment)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()
