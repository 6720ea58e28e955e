"""Decisions of a person: a machine has ended, an account is the same, or no copy of the installation runs."""

from sqlalchemy import update
from sqlmodel import Session, col

from app.hosts import lifecycle
from app.hosts.schemas import Settlement
from app.hosts.service import get_host, read_now
from app.hosts.spend import compute_spend
from app.http.errors import Conflict
from app.tables import CloudState, Host, HostStatus, StopReason
from trainers.configs.clouds.offers import CloudName
from trainers.runtime.error_codes import ErrorCode


class HostInReach(Conflict):
    """The keys of the cloud show the machine of the host, so nothing is to be settled."""

    code = ErrorCode.host_in_reach


class CloudNotHeld(Conflict):
    """There are no machines of the cloud to take over."""

    code = ErrorCode.cloud_not_held


def settle_host(session: Session, host_id: str, settlement: Settlement) -> Host:
    """End a host out of reach whose machine has ended, or take the keys for those of its account.

    Raises HostNotFound and HostInReach.
    """
    host = get_host(session, host_id)
    if host.status.finished or not is_out_of_reach(host):
        raise HostInReach(
            f"The host {host_id} is {host.status}, and not out of reach of the keys of {host.cloud}.",
            hint="Terminate it with DELETE /api/v1/hosts/{host_id}.",
        )
    if settlement is Settlement.machine_ended:
        return _end(session, host)
    state = session.get_one(CloudState, host.cloud)
    if state.account is None:
        raise HostInReach(
            f"The worker with the keys of {host.cloud} has not read the account of the keys yet.",
            hint="Repeat the request in a minute, or read the worker's `problems` in GET /api/v1/workers.",
        )
    same = col(Host.id) == host_id if host.account is None else col(Host.account) == host.account
    session.execute(
        update(Host)
        .where(same, col(Host.cloud) == host.cloud)
        .values(account=state.account, problem=None)
        .execution_options(synchronize_session=False)
    )
    session.refresh(host)
    return host


def take_over(session: Session, cloud: CloudName) -> None:
    """Let the service terminate what its rows do not want: no other copy of the installation runs.

    Raises CloudNotHeld.
    """
    state = session.get(CloudState, cloud)
    own = [machine for machine in state.unclaimed if not machine["foreign"]] if state is not None else []
    if state is None or (state.held_at is None and not own):
        raise CloudNotHeld(
            f"No machine of {cloud} waits for this decision.",
            hint="GET /api/v1/hosts/offers has `held_at` and `unclaimed` of each cloud.",
        )
    state.held_at, state.gaps = None, []


def is_out_of_reach(host: Host) -> bool:
    """Return whether the last sweep did not reach the machine of a host."""
    return host.problem is not None and host.problem["code"] == ErrorCode.host_out_of_reach


def _end(session: Session, host: Host) -> Host:
    """End a host; a machine of it that appears later belongs to no host, and is terminated."""
    now = read_now(session)
    stop = {"stop_at": now, "stop_reason": StopReason.requested}
    lifecycle.move(session, host.id, HostStatus.terminating, values=stop)
    end = {"ended_at": now, "spend_usd": compute_spend(host, now), "problem": None}
    lifecycle.move(session, host.id, HostStatus.terminated, values=end)
    session.refresh(host)
    return host
