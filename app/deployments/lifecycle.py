"""The life of a deployment: the only writer of its status.

    queued → starting → ready → stopping → stopped
    starting | ready → starting    (the engine died and is started again)
    starting | ready → queued      (the worker left or lost its lease)
    starting → failed              (the engine does not start)

As with runs, each change is one guarded UPDATE, and a worker's writes carry the attempt that holds it.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.db import database_now
from app.runs.lifecycle import StaleAttempt
from app.tables import Deployment, DeploymentStatus
from trainers.configs import Queue

LIVE = (DeploymentStatus.queued, DeploymentStatus.starting, DeploymentStatus.ready)
HELD = (DeploymentStatus.starting, DeploymentStatus.ready, DeploymentStatus.stopping)


def begin(session: Session, deployment: Deployment) -> Deployment:
    """Ask for a deployment; a live one of the same name is stopped, since one name has one model."""
    before = select(col(Deployment.id)).where(
        col(Deployment.name) == deployment.name, col(Deployment.status).in_(LIVE)
    )
    while True:
        for deployment_id in session.scalars(before).all():
            stop(session, deployment_id)
        try:
            with session.begin_nested():
                session.add(deployment)
        except IntegrityError:
            # Another request of this name was first and is committed now: it is the one to stop.
            continue
        return deployment


def claim(
    session: Session, worker_id: str, queues: Sequence[Queue], lease_seconds: float
) -> Deployment | None:
    """Take the oldest deployment that waits for a worker of these queues."""
    waiting = (
        select(col(Deployment.id))
        .where(col(Deployment.status) == DeploymentStatus.queued, col(Deployment.queue).in_(queues))
        .order_by(col(Deployment.id))
        .limit(1)
    )
    while (deployment_id := session.scalar(waiting)) is not None:
        taken = _update(
            session,
            deployment_id,
            [col(Deployment.status) == DeploymentStatus.queued],
            status=DeploymentStatus.starting,
            attempt=col(Deployment.attempt) + 1,
            worker_id=worker_id,
            lease_expires_at=database_now(lease_seconds),
            error=None,
        )
        if taken is not None:
            return taken
    return None


def renew(session: Session, deployment_id: str, attempt: int, lease_seconds: float) -> None:
    """Lengthen the lease; raises StaleAttempt when the attempt no longer holds the deployment."""
    renewed = _update(session, deployment_id, _held_by(attempt), lease_expires_at=database_now(lease_seconds))
    if renewed is None:
        raise StaleAttempt(f"attempt {attempt} no longer holds {deployment_id}")


def ready(session: Session, deployment_id: str, attempt: int, address: str) -> bool:
    """Open the deployment to requests; False when it was told to stop meanwhile."""
    return _moved(
        session,
        deployment_id,
        attempt,
        (DeploymentStatus.starting,),
        status=DeploymentStatus.ready,
        address=address,
        ready_at=database_now(),
        error=None,
    )


def restarting(session: Session, deployment_id: str, attempt: int, error: dict[str, Any]) -> bool:
    """Close the deployment to requests while its engine is started again."""
    return _moved(
        session,
        deployment_id,
        attempt,
        (DeploymentStatus.starting, DeploymentStatus.ready),
        status=DeploymentStatus.starting,
        address=None,
        restarts=col(Deployment.restarts) + 1,
        error=error,
    )


def end(session: Session, deployment_id: str, attempt: int, error: dict[str, Any] | None) -> bool:
    """The engine is gone for good: stopped on request, or failed with an error."""
    status = DeploymentStatus.failed if error else DeploymentStatus.stopped
    return _moved(session, deployment_id, attempt, HELD, status=status, error=error, **_released())


def hand_back(session: Session, deployment_id: str, attempt: int) -> bool:
    """The worker leaves: another may take the deployment."""
    sources = (DeploymentStatus.starting, DeploymentStatus.ready)
    return _moved(session, deployment_id, attempt, sources, status=DeploymentStatus.queued, **_unheld())


def stop(session: Session, deployment_id: str) -> Deployment | None:
    """Ask for the end: at once if no worker has it, else when its worker has stopped the engine."""
    queued = [col(Deployment.status) == DeploymentStatus.queued]
    held = [col(Deployment.status).in_((DeploymentStatus.starting, DeploymentStatus.ready))]
    return _update(session, deployment_id, queued, status=DeploymentStatus.stopped, **_released()) or _update(
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
        .values(status=DeploymentStatus.queued, **_unheld()),
    )
    options = {"synchronize_session": False}
    return sum(
        len(session.scalars(statement.returning(col(Deployment.id)), execution_options=options).all())
        for statement in statements
    )


def _unheld() -> dict[str, Any]:
    return {"worker_id": None, "lease_expires_at": None, "address": None}


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
