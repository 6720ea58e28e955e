"""Terminating machines, until the cloud confirms that they are gone."""

import logging
from datetime import timedelta
from typing import Any

from sqlmodel import col

from app.hosts import lifecycle
from app.hosts.spend import price_duration
from app.storage.database import transaction
from app.tables import Host, HostStatus
from app.webhooks.event_types import WebhookEventType
from app.webhooks.outbox import record_event
from workers.cloud_hosts.context import SETTLE_SECONDS, HostWork, Sweep
from workers.cloud_hosts.launch import has_settled
from workers.cloud_hosts.stop_rules import ABRUPT, FAILURES, Stop
from workers.clouds.protocol import CloudError, CloudErrorKind, Machine, MachineState

# How long a large machine may take to shut down.
SHUTDOWN_SECONDS = 1800.0

logger = logging.getLogger(__name__)


def begin_stop(sweep: Sweep, host: Host, facts: HostWork, stop: Stop) -> Host | None:
    """Record that a host ends; its worker saves its runs first if it has time for that."""
    clock = sweep.context.clock
    saves = host.status is HostStatus.ready and not facts.has_left and stop.reason not in ABRUPT
    to = HostStatus.stopping if saves else HostStatus.terminating
    values = {"stop_at": clock(0), "stop_reason": stop.reason}
    if stop.error is not None:
        values["error"] = stop.error.as_dict()
    guards = [lifecycle.is_kept_by(sweep.lease, clock)]
    logger.info("host %s ends: %s", host.id, stop.reason)
    with transaction() as session:
        return lifecycle.move(session, host.id, to, sources=[host.status], guards=guards, values=values)


def end_stop(sweep: Sweep, host: Host, facts: HostWork) -> Host | None:
    """Move a host whose worker has left, or has had its time, to `terminating`."""
    if not facts.has_left and not sweep.has_passed(host.stop_at, sweep.context.settings.host_stop_seconds):
        return None
    guards = [lifecycle.is_kept_by(sweep.lease, sweep.context.clock)]
    with transaction() as session:
        return lifecycle.move(session, host.id, HostStatus.terminating, guards=guards)


def terminate(sweep: Sweep, host: Host, machine: Machine | None) -> None:
    """Terminate the machine of a host, or record that it is gone.

    `machine` is what the list contains of it. Raises CloudError if the request failed; it is repeated with
    each sweep.
    """
    if host.machine_id is None:
        # A machine whose launch was not recorded would be in the list by now, and its id in the row.
        if host.attempted_at is None or has_settled(sweep, host):
            _end(sweep, host)
        return
    if sweep.is_listed and machine is None and is_gone(sweep, host):
        _end(sweep, host)
        return
    if machine is not None and machine.state.is_gone:
        _end(sweep, host)
        return
    request_end(sweep, host.machine_id, machine)


def request_end(sweep: Sweep, machine_id: str, machine: Machine | None) -> None:
    """Ask the cloud to terminate a machine, unless it does so already; `machine` is its entry of the list.

    Raises CloudError if the request failed, or if earlier ones were accepted and have had no effect for long.
    """
    is_ending = machine is not None and machine.state is MachineState.terminating
    if not is_ending:
        sweep.context.cloud.terminate(machine_id)
    accepted_at = sweep.context.accepted.setdefault(machine_id, sweep.now)
    limit = sweep.context.settings.host_overdue_seconds
    if machine is not None and sweep.has_passed(
        accepted_at, max(limit, SHUTDOWN_SECONDS) if is_ending else limit
    ):
        message = f"the cloud accepts the request to terminate it, and it is still {machine.state}."
        raise CloudError(CloudErrorKind.unreachable, message)


def record_failure(sweep: Sweep, host: Host) -> bool:
    """Count a failed termination; return whether it is overdue. The first time, webhooks are notified."""
    is_overdue = sweep.has_passed(host.stop_at, sweep.context.settings.host_overdue_seconds)
    is_new = is_overdue and host.overdue_at is None
    values: dict[str, Any] = {"terminate_failures": col(Host.terminate_failures) + 1}
    if is_new:
        values["overdue_at"] = sweep.context.clock(0)
    with transaction() as session:
        lifecycle.write(session, host.id, values, [col(Host.status) == HostStatus.terminating])
        if is_new:
            record_event(session, WebhookEventType.host_termination_overdue, host.id)
    return is_overdue


def record_problem(sweep: Sweep, host: Host, error: CloudError | None, *, is_overdue: bool = False) -> None:
    """Write why a sweep could not do what a host needs; None ends the problem."""
    problem = error.as_dict() if error is not None else None
    if problem is not None and is_overdue:
        problem["message"] = f"The termination is overdue, and the machine is billed: {problem['message']}"
    if problem != host.problem:
        guards = [lifecycle.is_kept_by(sweep.lease, sweep.context.clock)]
        with transaction() as session:
            lifecycle.write(session, host.id, {"problem": problem}, guards)


def is_gone(sweep: Sweep, host: Host) -> bool:
    """Return whether a machine that the list does not contain is gone; one may be too new for the list."""
    assert host.machine_id is not None, "checked by the caller"
    found = sweep.context.cloud.describe(host.machine_id)
    if found is None:
        return sweep.has_passed(host.launched_at, SETTLE_SECONDS)
    return found.state.is_gone


def _end(sweep: Sweep, host: Host) -> None:
    spend = 0.0
    if host.machine_id is not None:
        assert host.launched_at is not None, "written with the id of the machine"
        spend = price_duration(host.usd_per_hour, max(sweep.now - host.launched_at, timedelta()))
    values = {"ended_at": sweep.context.clock(0), "spend_usd": spend, "problem": None}
    to = HostStatus.failed if host.stop_reason in FAILURES else HostStatus.terminated
    guards = [
        lifecycle.is_kept_by(sweep.lease, sweep.context.clock),
        col(Host.epoch) == host.epoch,
        col(Host.machine_id).is_not_distinct_from(host.machine_id),
    ]
    logger.info("host %s has ended", host.id, extra={"spend_usd": spend})
    with transaction() as session:
        lifecycle.move(session, host.id, to, guards=guards, values=values)
