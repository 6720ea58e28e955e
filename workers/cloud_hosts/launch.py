"""Launching the machine of a host: once, whatever is lost between this process, the database and the cloud.

1. The row gets the number of the request (`epoch`) and its time, and is committed.
2. The request is sent; name and tags of the machine carry host and epoch.
3. The id of the machine is committed.

A process that ends in between, or loses the response, leaves a row with a request of unknown outcome. It is
sent again only after the machines were listed, `SETTLE_SECONDS` later, and none has this host and epoch.
"""

import logging
from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col

from app.hosts import lifecycle
from app.keys.schemas import KeyCreate
from app.keys.service import create_key
from app.storage.database import database_now, transaction
from app.tables import ApiKey, Host, HostStatus, Scope, StopReason
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.cloud_hosts.context import LEASE_SECONDS, SETTLE_SECONDS, Sweep
from workers.clouds.protocol import CloudError, CloudErrorKind, LaunchOrder, Machine

CAPACITY_RETRY_SECONDS = 30.0
RATE_RETRY_SECONDS = 15.0
# Refusals that repeating the request does not change.
FINAL_KINDS = (CloudErrorKind.quota_exceeded, CloudErrorKind.invalid_request, CloudErrorKind.unauthorized)

logger = logging.getLogger(__name__)


class HostUnavailable(TunesmithError):
    """The cloud does not launch the machine."""

    code = ErrorCode.host_unavailable


def may_launch(sweep: Sweep, host: Host) -> bool:
    """Return whether a request may be sent now: it is due, and an earlier one has created no machine."""
    if host.id in sweep.crowded_hosts or (host.attempted_at is not None and not has_settled(sweep, host)):
        return False
    return host.launch_at is None or host.launch_at <= sweep.now


def has_settled(sweep: Sweep, host: Host) -> bool:
    """Return whether the list of this sweep would contain the machine of the last request."""
    return sweep.is_listed and sweep.has_passed(host.attempted_at, SETTLE_SECONDS)


def launch(sweep: Sweep, host: Host) -> None:
    """Send a launch request for a host, and record its outcome.

    Raises CloudError if the account is unknown: its machine could not be told from that of another one.
    """
    if sweep.account is None:
        raise CloudError(CloudErrorKind.unreachable, "it waits until the account of the keys is known.")
    started = _start_attempt(sweep, host)
    if started is None:
        return
    attempt, secret = started
    order = LaunchOrder(
        installation=sweep.context.installation,
        host_id=attempt.id,
        epoch=attempt.epoch,
        type=attempt.type,
        region=attempt.region,
        user_data=sweep.context.make_user_data(attempt, secret),
        spot=attempt.spot,
    )
    try:
        machine_id = sweep.context.cloud.launch(order)
    except CloudError as error:
        logger.warning("the launch of host %s failed: %s", host.id, error.message)
        _record_failure(sweep, attempt, error)
    else:
        logger.info("launched host %s as %s", host.id, machine_id)
        _record_machine(attempt, machine_id)


def adopt(host: Host, machine: Machine) -> None:
    """Record the machine of a launch request whose response was lost."""
    logger.warning("host %s has the machine %s, whose launch was not recorded", host.id, machine.id)
    _record_machine(host, machine.id)


def give_up(sweep: Sweep, host: Host) -> None:
    """End a host that the cloud has not launched in time."""
    reason = (host.error or {}).get("message", "the cloud did not confirm a machine")
    limit = sweep.context.settings.host_launch_seconds
    error = HostUnavailable(
        f"{host.cloud} has not launched {host.type} within {limit:g} seconds: {reason}",
        "Choose another type or region: GET /api/v1/hosts/offers.",
    )
    _fail(sweep, host, error)


def _start_attempt(sweep: Sweep, host: Host) -> tuple[Host, str] | None:
    """Commit that a request is sent now; return the row with its epoch, and the secret of its API key.

    The lease is extended, so that no other keeper acts while the request is on its way.
    """
    clock = sweep.context.clock
    with transaction() as session:
        lifecycle.update_cloud(session, sweep.lease, {"lease_expires_at": clock(LEASE_SECONDS)})
        _revoke(session, host.key_id)
        key, secret = create_key(session, KeyCreate(name=f"host {host.id}", scopes=[Scope.worker]))
        values = {
            "epoch": col(Host.epoch) + 1,
            "attempted_at": clock(0),
            "account": sweep.account,
            "launch_at": None,
            "key_id": key.id,
        }
        guards = [col(Host.status) == HostStatus.launching, col(Host.epoch) == host.epoch]
        attempt = lifecycle.write(session, host.id, values, guards)
        if attempt is None:
            session.rollback()
            return None
    return attempt, secret


def _record_machine(host: Host, machine_id: str) -> None:
    """Write the id of the machine; also into the row of a host whose end was decided meanwhile."""
    values = {"machine_id": machine_id, "launched_at": col(Host.attempted_at), "error": None}
    guards = [col(Host.epoch) == host.epoch, col(Host.machine_id).is_(None)]
    with transaction() as session:
        moved = lifecycle.move(session, host.id, HostStatus.booting, guards=guards, values=values)
        if moved is None:
            lifecycle.write(session, host.id, values, guards)


def _record_failure(sweep: Sweep, host: Host, error: CloudError) -> None:
    shown = HostUnavailable(error.message, error.hint)
    if error.is_outcome_unknown:
        # `attempted_at` stays: the machine may exist.
        _write_failure(host, {"error": shown.as_dict()})
    elif error.kind in FINAL_KINDS:
        _write_failure(host, {"attempted_at": None})
        _fail(sweep, host, shown)
    else:
        seconds = error.retry_after_seconds or RATE_RETRY_SECONDS
        if error.kind is CloudErrorKind.no_capacity:
            seconds = CAPACITY_RETRY_SECONDS
        launch_at = sweep.context.clock(seconds)
        _write_failure(host, {"attempted_at": None, "launch_at": launch_at, "error": shown.as_dict()})


def _write_failure(host: Host, values: dict[str, Any]) -> None:
    guards = [col(Host.epoch) == host.epoch, col(Host.machine_id).is_(None)]
    with transaction() as session:
        lifecycle.write(session, host.id, values, guards)


def _fail(sweep: Sweep, host: Host, error: TunesmithError) -> None:
    clock = sweep.context.clock
    values = {
        "error": error.as_dict(),
        "stop_at": clock(0),
        "stop_reason": StopReason.launch_failed,
        "ended_at": clock(0),
    }
    guards = [lifecycle.is_kept_by(sweep.lease, clock), col(Host.epoch) == host.epoch]
    sources = [HostStatus.launching]
    with transaction() as session:
        lifecycle.move(session, host.id, HostStatus.failed, sources=sources, guards=guards, values=values)


def _revoke(session: Session, key_id: str | None) -> None:
    if key_id is not None:
        statement = update(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.revoked_at).is_(None))
        session.execute(
            statement.values(revoked_at=database_now()).execution_options(synchronize_session=False)
        )
