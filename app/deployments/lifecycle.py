"""The life cycle of a deployment: the only writer of its status.

    queued → starting → ready → stopping → stopped
    starting | ready → starting    (the engine stopped and is restarted)
    starting | ready → queued      (the worker left or lost its lease)
    starting → failed              (the engine does not start, or does not match the trained model)
    starting → asleep              (likewise, for a fine-tuned model: the next request tries again)
    stopping → asleep → stopped    (of a fine-tuned model: stopped once the model is deleted)
    ready → asleep → queued        (idle, or another deployment needed the room; a request wakes it)

As with runs, each change is one guarded UPDATE, and a worker's writes carry the attempt that holds the
lease. A name has one owner, which serves it, and at most one successor, which takes it over when ready.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, case, exists, func, literal, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.runs.lifecycle import StaleAttempt
from app.storage.database import database_now
from app.tables import Deployment, DeploymentStatus
from app.tables.base import enum_type
from app.tables.deployment import FINE_TUNED_PREFIX
from app.webhooks.event_types import WebhookEventType
from app.webhooks.outbox import record_event
from trainers.configs import Queue

LIVE = (
    DeploymentStatus.queued,
    DeploymentStatus.starting,
    DeploymentStatus.ready,
    DeploymentStatus.asleep,
)
HELD = (DeploymentStatus.starting, DeploymentStatus.ready, DeploymentStatus.stopping)
UNFINISHED = (*LIVE, DeploymentStatus.stopping)
# The worker that has a deployment's base in memory may claim it this long before the others.
PRECEDENCE_SECONDS = 5.0


class DeploymentState(NamedTuple):
    """The state of a deployment that its worker polls; times are those of the database's clock."""

    id: str
    status: DeploymentStatus
    last_used_at: datetime | None
    ready_at: datetime | None
    now: datetime


def list_claimable(session: Session, worker_id: str, queues: Sequence[Queue]) -> Sequence[Deployment]:
    """Return the deployments that a worker of these queues may claim now, oldest first."""
    return session.scalars(
        select(Deployment)
        .where(*_claimable(worker_id), col(Deployment.queue).in_(queues))
        .order_by(col(Deployment.id))
    ).all()


def claim(session: Session, deployment_id: str, worker_id: str, lease_seconds: float) -> Deployment | None:
    """Claim a queued deployment; return None if another worker has claimed it or has precedence."""
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
    """Return the current states of deployments."""
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
    """Extend the lease; raises StaleAttempt if the attempt no longer holds the deployment."""
    renewed = _update(
        session, deployment_id, _lease_guards(attempt), lease_expires_at=database_now(lease_seconds)
    )
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
    """Open the deployment to requests and give it its name; return False if it must stop instead."""
    moved = _move_held(
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
        record_event(session, WebhookEventType.deployment_ready, deployment_id)
    return moved


def mark_restarting(session: Session, deployment_id: str, attempt: int, error: dict[str, Any]) -> bool:
    """Close the deployment to requests while its engine restarts; return False if it must stop instead."""
    return _move_held(
        session,
        deployment_id,
        attempt,
        (DeploymentStatus.starting, DeploymentStatus.ready),
        status=DeploymentStatus.starting,
        address=None,
        restart_count=col(Deployment.restart_count) + 1,
        error=error,
    )


def report_wait(session: Session, deployment_id: str, attempt: int, error: dict[str, Any]) -> bool:
    """Record why a deployment that is starting waits; return False if it must stop instead."""
    return _move_held(session, deployment_id, attempt, (DeploymentStatus.starting,), error=error)


def sleep(session: Session, deployment_id: str, attempt: int) -> bool:
    """Keep the deployment without an engine; return False if it must stop instead."""
    values = {"status": DeploymentStatus.asleep, **_no_engine_values()}
    return _move_held(session, deployment_id, attempt, (DeploymentStatus.ready,), **values)


def wake(session: Session, deployment_id: str) -> Deployment | None:
    """Queue a sleeping deployment; return None if it is not asleep."""
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
    """End the deployment: failed with an error, stopped on request without one; asleep if it is on demand."""
    status = DeploymentStatus.stopped if error is None else DeploymentStatus.failed
    values = _ended_values(status) | {"error": error}
    if parity is not None:
        values["parity"] = parity
    moved = _move_held(session, deployment_id, attempt, HELD, **values)
    if moved and error is not None:
        record_event(session, WebhookEventType.deployment_failed, deployment_id)
    return moved


def release(session: Session, deployment_id: str, attempt: int) -> bool:
    """Queue the deployment again, because its worker is stopping."""
    sources = (DeploymentStatus.starting, DeploymentStatus.ready)
    return _move_held(session, deployment_id, attempt, sources, **_queued_values())


def stop(session: Session, deployment_id: str) -> Deployment | None:
    """Stop a deployment at once if no worker holds it; otherwise its worker stops the engine first.

    One on demand falls asleep: its name is that of a model, which can be requested until it is deleted.
    """
    unheld = [col(Deployment.status).in_((DeploymentStatus.queued, DeploymentStatus.asleep))]
    held = [col(Deployment.status).in_((DeploymentStatus.starting, DeploymentStatus.ready))]
    return _update(session, deployment_id, unheld, **_ended_values(DeploymentStatus.stopped)) or _update(
        session, deployment_id, held, status=DeploymentStatus.stopping
    )


def retire(session: Session, deployment_id: str) -> Deployment | None:
    """Stop a sleeping deployment for good, because its model is deleted; return None if it is not asleep."""
    asleep = [col(Deployment.status) == DeploymentStatus.asleep]
    return _update(session, deployment_id, asleep, status=DeploymentStatus.stopped, stopped_at=database_now())


def release_expired(session: Session) -> int:
    """Release deployments whose workers have not renewed their leases in time; return the count."""
    expired = col(Deployment.lease_expires_at) < database_now()
    stopping = col(Deployment.status) == DeploymentStatus.stopping
    statements = (
        update(Deployment).where(expired, stopping).values(**_ended_values(DeploymentStatus.stopped)),
        update(Deployment)
        .where(expired, col(Deployment.status).in_((DeploymentStatus.starting, DeploymentStatus.ready)))
        .values(**_queued_values()),
    )
    options = {"synchronize_session": False}
    return sum(
        len(session.scalars(statement.returning(col(Deployment.id)), execution_options=options).all())
        for statement in statements
    )


def _take_name(session: Session, deployment_id: str) -> None:
    """Make a successor the owner of its name, and stop the former owner."""
    name = select(col(Deployment.name)).where(col(Deployment.id) == deployment_id).scalar_subquery()
    others = select(col(Deployment.id)).where(
        col(Deployment.name) == name,
        col(Deployment.status).in_(LIVE),
        col(Deployment.id) != deployment_id,
        col(Deployment.replaces).is_(None),
    )
    is_successor = col(Deployment.replaces).is_not(None)
    if session.scalar(select(col(Deployment.id)).where(col(Deployment.id) == deployment_id, is_successor)):
        for other in session.scalars(others).all():
            stop(session, other)
        _update(session, deployment_id, [], replaces=None)


def _claimable(worker_id: str) -> list[ColumnElement[bool]]:
    """Return the conditions that a deployment is queued, and that no other worker has precedence."""
    hosted = aliased(Deployment)
    has_engine_elsewhere = exists().where(
        col(hosted.engine_key) == col(Deployment.engine_key),
        col(hosted.engine_key) != "",
        col(hosted.worker_id) != worker_id,
        col(hosted.status).in_((DeploymentStatus.starting, DeploymentStatus.ready)),
        col(hosted.lease_expires_at) > database_now(),
    )
    since = func.coalesce(col(Deployment.queued_at), col(Deployment.created_at))
    overdue = since < database_now(-PRECEDENCE_SECONDS)
    return [col(Deployment.status) == DeploymentStatus.queued, or_(~has_engine_elsewhere, overdue)]


def _no_engine_values() -> dict[str, Any]:
    return {"worker_id": None, "lease_expires_at": None, "address": None, "upstream_model": None}


def _queued_values() -> dict[str, Any]:
    return {**_no_engine_values(), "status": DeploymentStatus.queued, "queued_at": database_now()}


def _ended_values(status: DeploymentStatus) -> dict[str, Any]:
    """Return the values of a deployment that has ended, or of one on demand, which falls asleep."""
    on_demand = col(Deployment.name).startswith(FINE_TUNED_PREFIX, autoescape=True)
    kind = enum_type(DeploymentStatus)
    asleep, ended = literal(DeploymentStatus.asleep, kind), literal(status, kind)
    return {
        **_no_engine_values(),
        "status": case((on_demand, asleep), else_=ended),
        "stopped_at": case((on_demand, None), else_=database_now()),
    }


def _move_held(
    session: Session, deployment_id: str, attempt: int, sources: Sequence[DeploymentStatus], **values: Any
) -> bool:
    """Update a deployment that the attempt holds; return False if its status is not one of `sources`.

    Raises StaleAttempt if the attempt does not hold the deployment.
    """
    guards = [*_lease_guards(attempt), col(Deployment.status).in_(sources)]
    if _update(session, deployment_id, guards, **values) is not None:
        return True
    held = select(col(Deployment.id)).where(col(Deployment.id) == deployment_id, *_lease_guards(attempt))
    if session.scalar(held) is None:
        raise StaleAttempt(f"attempt {attempt} no longer holds {deployment_id}")
    return False


def _lease_guards(attempt: int) -> list[ColumnElement[bool]]:
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
