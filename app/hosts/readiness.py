"""What about the hosts in clouds needs a person, as the rows say, whether or not a worker keeps them."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlmodel import Session, col

from app.hosts.service import list_unfinished, read_now
from app.hosts.settlement import is_out_of_reach
from app.settings import Settings, get_settings
from app.storage.database import read_session
from app.tables import CloudState, Host, HostStatus

MAX_NAMED = 5


class HostsUnwell(Exception):
    """Machines in clouds may be billed that nobody uses or can end."""


def check_hosts() -> None:
    """Raise HostsUnwell if a person must do something about a host or a machine."""
    with read_session() as session:
        problems = list_problems(session, get_settings())
    if problems:
        raise HostsUnwell("; ".join(problems))


def list_problems(session: Session, settings: Settings) -> list[str]:
    """Return what needs a person, the most expensive first."""
    hosts, now = list_unfinished(session), read_now(session)
    states = session.scalars(select(CloudState).order_by(col(CloudState.name)))
    problems = [
        *_name("overdue termination, billed", [host.id for host in hosts if is_overdue(host, now, settings)]),
        *_name(
            "out of reach of the keys of the cloud, may be billed",
            [host.id for host in hosts if is_out_of_reach(host)],
        ),
    ]
    for state in states:
        if state.held_at is not None:
            problems.append(f"held after a restoration until they are taken over: the hosts at {state.name}")
        if state.lease_expires_at is None or state.lease_expires_at <= now:
            own = [host.id for host in hosts if host.cloud is state.name]
            problems += _name(f"no live worker holds the keys of {state.name}", own)
        machines = [str(machine["machine_id"]) for machine in state.unclaimed]
        problems += _name(f"machines at {state.name} that this installation does not end", machines)
    return problems


def is_overdue(host: Host, now: datetime, settings: Settings) -> bool:
    """Return whether the termination of a host has not succeeded in time."""
    if host.status is not HostStatus.terminating or host.stop_at is None:
        return False
    return now - host.stop_at >= timedelta(seconds=settings.host_overdue_seconds)


def _name(what: str, ids: list[str]) -> list[str]:
    if not ids:
        return []
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return [f"{what}: {', '.join(ids[:MAX_NAMED])}{more}"]
