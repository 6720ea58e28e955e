"""Requesting, listing and terminating hosts. A worker with the keys of the cloud carries it out."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlmodel import Session, col

from app.hosts import lifecycle
from app.hosts.offers import is_attended, list_offers, require_offer
from app.hosts.schemas import CloudOffersView, HostCreate, HostView, OffersView, UnclaimedMachine
from app.hosts.spend import compute_spend
from app.http.errors import Conflict, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.idempotency.creation import Record
from app.runs.schemas import ErrorView
from app.settings import Settings
from app.storage.database import database_now, lock_name, transaction
from app.tables import Host, HostStatus, StopReason, Worker
from app.workers.service import AliveWorkers
from trainers.configs.clouds.offers import CloudName
from trainers.runtime.error_codes import ErrorCode

ENDED = [status for status in HostStatus if status.finished]
PROGRESS = {
    HostStatus.launching: "Waits for the cloud to accept the launch.",
    HostStatus.booting: "The machine boots.",
    HostStatus.joining: "The machine runs and installs its worker, which must announce a GPU that works.",
    HostStatus.ready: "Its worker takes runs.",
    HostStatus.stopping: "Its worker saves its runs and leaves.",
    HostStatus.terminating: "The machine is being terminated; this is repeated until the cloud confirms it.",
    HostStatus.terminated: "The machine is gone, and costs nothing more.",
    HostStatus.failed: "The host has failed, and costs nothing more.",
}
UNATTENDED = (
    "No live worker holds the keys of {cloud}: nothing is launched or terminated. Start one, or terminate "
    "the machine in the console of the cloud."
)


class HostNotFound(NotFound):
    """No host has this id."""

    code = ErrorCode.host_not_found


class TooManyHosts(Conflict):
    """The service has as many hosts as the settings allow."""

    code = ErrorCode.too_many_hosts


def create_host(settings: Settings, body: HostCreate, created_by: str, record: Record) -> str:
    """Insert the row of a host, from which a worker launches it, and return its id.

    Raises the errors of `require_offer`, and TooManyHosts.
    """
    with transaction() as session:
        offer = require_offer(session, AliveWorkers(settings), body)
        require_room(session, settings)
        idle_seconds = settings.host_idle_seconds if body.idle_seconds is None else body.idle_seconds
        host = Host(
            cloud=body.cloud,
            type=offer.type,
            region=offer.region,
            spot=body.spot,
            gpu_name=offer.gpu_name,
            gpu_count=offer.gpu_count,
            usd_per_hour=offer.usd_per_hour,
            max_usd=body.max_usd,
            idle_seconds=idle_seconds,
            created_by=created_by,
            created_at=read_now(session),
        )
        session.add(host)
        session.flush()
        record(session, host.id)
    return host.id


def require_room(session: Session, settings: Settings) -> None:
    """Raise TooManyHosts if no further host may exist."""
    count = count_for_insert(session)
    if count >= settings.max_hosts:
        hosts = "1 cloud host exists" if count == 1 else f"{count} cloud hosts exist"
        raise TooManyHosts(
            f"{hosts}, and TUNESMITH_MAX_HOSTS allows {settings.max_hosts}.",
            hint="Terminate one with DELETE /api/v1/hosts/{host_id}, or ask the operator to raise the limit.",
        )


def list_unfinished(session: Session) -> Sequence[Host]:
    """Return the hosts that may have a machine, oldest first."""
    statement = select(Host).where(col(Host.status).not_in(ENDED)).order_by(col(Host.id))
    return session.scalars(statement).all()


def sum_ended_spend(session: Session, cloud: CloudName) -> float:
    """Return the US dollars that the hosts of a cloud have cost that have ended."""
    ended = col(Host.cloud) == cloud, col(Host.status).in_(ENDED)
    return session.scalar(select(func.sum(col(Host.spend_usd))).where(*ended)) or 0.0


def count_for_insert(session: Session) -> int:
    """Return the number of hosts that may have a machine; only this transaction adds to it until it ends."""
    lock_name(session, "hosts")
    statement = select(func.count()).select_from(Host).where(col(Host.status).not_in(ENDED))
    return session.scalar(statement) or 0


def list_hosts(
    session: Session, paging: PageQuery, status: HostStatus | None
) -> tuple[Sequence[Host], str | None]:
    """Return a page of hosts, newest first."""
    statement = select(Host) if status is None else select(Host).where(col(Host.status) == status)
    return paginate_newest_first(session, statement, col(Host.id), paging)


def get_host(session: Session, host_id: str) -> Host:
    """Return a host; raises HostNotFound."""
    host = session.get(Host, host_id)
    if host is None:
        raise HostNotFound(f"There is no host {host_id}.", hint="List them with GET /api/v1/hosts.")
    return host


def terminate_host(session: Session, host_id: str) -> Host:
    """Ask for the end of a host, whose worker saves its runs first; one that is ending stays as it is."""
    host = get_host(session, host_id)
    values = {"stop_at": database_now(), "stop_reason": StopReason.requested}
    for to in (HostStatus.stopping, HostStatus.terminating):
        sources = [HostStatus.ready] if to is HostStatus.stopping else [s for s in HostStatus if s.wanted]
        moved = lifecycle.move(session, host_id, to, sources=sources, values=values)
        if moved is not None:
            return moved
    session.refresh(host)
    return host


def view_hosts(session: Session, settings: Settings, hosts: Sequence[Host]) -> list[HostView]:
    """Return the responses for hosts, with their spend and workers now."""
    now, alive = read_now(session), AliveWorkers(settings).read(session)
    workers: dict[str, list[str]] = defaultdict(list)
    for worker in alive:
        workers[worker.host_id or ""].append(worker.id)
    return [_view(host, now, workers[host.id], alive) for host in hosts]


def view_offers(session: Session, settings: Settings) -> OffersView:
    """Return what the clouds offer, as their workers have last read it."""
    alive = AliveWorkers(settings).read(session)
    return OffersView(
        clouds=[
            CloudOffersView(
                cloud=state.name,
                attended=is_attended(alive, state.name),
                error=state.error,
                swept_at=state.swept_at,
                read_at=state.offers_at,
                account=state.account,
                held_at=state.held_at,
                unclaimed=[UnclaimedMachine.model_validate(machine) for machine in state.unclaimed],
                orphans=state.orphan_count,
                offers=offers,
            )
            for state, offers in list_offers(session)
        ]
    )


def read_now(session: Session) -> datetime:
    """Return the database's time."""
    return session.scalars(select(database_now())).one()


def _view(host: Host, now: datetime, workers: list[str], alive: Sequence[Worker]) -> HostView:
    progress = PROGRESS[host.status]
    if not host.status.finished and not is_attended(alive, host.cloud):
        progress = UNATTENDED.format(cloud=host.cloud)
    values = host.model_dump(exclude={"created_by", "spend_usd", "error", "problem"})
    # What fails now comes before why the host ends.
    error = (None if host.status.finished else host.problem) or host.error
    return HostView(
        **values,
        progress=progress,
        spend_usd=round(compute_spend(host, now), 4),
        workers=workers,
        error=ErrorView.model_validate(error) if error else None,
        created_by=host.created_by or None,
    )
