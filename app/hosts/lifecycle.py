"""The life cycle of a host: the only writer of its status, and the lease of the worker that keeps a cloud.

launching → booting → joining → ready → stopping → terminating → terminated | failed

Any of them may go to `terminating` at once. From `launching` a host also ends without a machine. A host is
`failed` if an error ended it. Writes of a keeper are guarded by its lease: one that was suspended, and whose
cloud another worker keeps since, writes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.storage.database import database_now
from app.tables import ApiKey, CloudState, Host, HostStatus
from app.webhooks.event_types import WebhookEventType
from app.webhooks.outbox import record_event
from trainers.configs.clouds.offers import CloudName

Clock = Callable[[float], ColumnElement[datetime]]
"""SQL of the current time plus some seconds: `database_now`, or the clock of a simulation."""

TRANSITIONS: dict[HostStatus, frozenset[HostStatus]] = {
    HostStatus.launching: frozenset(
        {HostStatus.booting, HostStatus.terminating, HostStatus.terminated, HostStatus.failed}
    ),
    HostStatus.booting: frozenset({HostStatus.joining, HostStatus.terminating}),
    HostStatus.joining: frozenset({HostStatus.ready, HostStatus.terminating}),
    HostStatus.ready: frozenset({HostStatus.stopping, HostStatus.terminating}),
    HostStatus.stopping: frozenset({HostStatus.terminating}),
    HostStatus.terminating: frozenset({HostStatus.terminated, HostStatus.failed}),
    HostStatus.terminated: frozenset(),
    HostStatus.failed: frozenset(),
}
_EVENTS = {
    HostStatus.ready: WebhookEventType.host_ready,
    HostStatus.terminated: WebhookEventType.host_terminated,
    HostStatus.failed: WebhookEventType.host_failed,
}


@dataclass(frozen=True)
class KeeperLease:
    """The lease of a worker that keeps the hosts of a cloud."""

    cloud: CloudName
    worker_id: str
    epoch: int


class LeaseTaken(Exception):
    """Another worker keeps the hosts of the cloud by now: this one must call the cloud no more."""


def take_lease(
    session: Session, cloud: CloudName, worker_id: str, seconds: float, clock: Clock = database_now
) -> KeeperLease | None:
    """Take or extend the lease of a cloud; None if another worker holds it."""
    if session.get(CloudState, cloud) is None:
        try:
            with session.begin_nested():
                session.add(CloudState(name=cloud))
                session.flush()
        except IntegrityError:
            pass  # Another worker was faster.
    is_mine = and_(col(CloudState.worker_id) == worker_id, col(CloudState.lease_expires_at) > clock(0))
    is_free = or_(col(CloudState.lease_expires_at).is_(None), col(CloudState.lease_expires_at) <= clock(0))
    epoch = session.scalar(
        update(CloudState)
        .where(col(CloudState.name) == cloud, or_(is_mine, is_free))
        .values(
            worker_id=worker_id,
            epoch=case((is_mine, col(CloudState.epoch)), else_=col(CloudState.epoch) + 1),
            lease_expires_at=clock(seconds),
        )
        .returning(col(CloudState.epoch))
        .execution_options(synchronize_session=False)
    )
    return None if epoch is None else KeeperLease(cloud, worker_id, epoch)


def release_lease(session: Session, lease: KeeperLease) -> None:
    """End a lease, so that another worker need not wait for its end."""
    statement = update(CloudState).where(_names_holder(lease)).values(lease_expires_at=None)
    session.execute(statement.execution_options(synchronize_session=False))


def update_cloud(session: Session, lease: KeeperLease, values: dict[str, Any]) -> None:
    """Write columns of the cloud; raises LeaseTaken.

    A lease that has expired, and that nobody has taken, is still held: each taking counts its epoch.
    """
    statement = (
        update(CloudState).where(_names_holder(lease)).values(**values).returning(col(CloudState.name))
    )
    if session.scalar(statement.execution_options(synchronize_session=False)) is None:
        raise LeaseTaken(f"{lease.worker_id} does not keep {lease.cloud} any more")


def is_kept_by(lease: KeeperLease, clock: Clock = database_now) -> ColumnElement[bool]:
    """Return the SQL condition that the lease is held."""
    is_held = _names_holder(lease) & (col(CloudState.lease_expires_at) > clock(0))
    return exists(select(col(CloudState.name)).where(is_held))


def move(
    session: Session,
    host_id: str,
    to: HostStatus,
    *,
    sources: Iterable[HostStatus] | None = None,
    guards: Sequence[ColumnElement[bool]] = (),
    values: dict[str, Any] | None = None,
) -> Host | None:
    """Change a host's status; None if its current status, or a guard, does not allow the change."""
    allowed = [status for status in (sources or HostStatus) if to in TRANSITIONS[status]]
    host = write(session, host_id, {**(values or {}), "status": to}, [col(Host.status).in_(allowed), *guards])
    if host is None:
        return None
    if to is HostStatus.terminating or to.finished:
        # Whatever happens to the machine, it can call the API no more.
        _revoke_key(session, host)
    if (event := _EVENTS.get(to)) is not None:
        record_event(session, event, host.id)
    return host


def write(
    session: Session, host_id: str, values: dict[str, Any], guards: Sequence[ColumnElement[bool]] = ()
) -> Host | None:
    """Write columns of a host; None if a guard does not allow it."""
    statement = (
        update(Host)
        .where(col(Host.id) == host_id, *guards)
        .values(**values)
        .returning(Host)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def _names_holder(lease: KeeperLease) -> ColumnElement[bool]:
    return and_(
        col(CloudState.name) == lease.cloud,
        col(CloudState.worker_id) == lease.worker_id,
        col(CloudState.epoch) == lease.epoch,
    )


def _revoke_key(session: Session, host: Host) -> None:
    if host.key_id is None:
        return
    statement = update(ApiKey).where(col(ApiKey.id) == host.key_id, col(ApiKey.revoked_at).is_(None))
    statement = statement.values(revoked_at=database_now())
    session.execute(statement.execution_options(synchronize_session=False))
