"""Why and when a host must end: its cap, its job, its boot, its machine, its worker, and idleness."""

from dataclasses import dataclass
from datetime import timedelta

from app.hosts.spend import compute_spend, price_duration
from app.tables import Host, HostStatus, StopReason
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.cloud_hosts.context import LEASE_SECONDS, HostWork, Sweep
from workers.clouds.protocol import Machine, MachineState

# Reasons that leave no time to save, or nothing to save.
ABRUPT = frozenset({StopReason.boot_timeout, StopReason.worker_lost, StopReason.machine_lost})
# Reasons after which the host has failed.
FAILURES = frozenset({*ABRUPT, StopReason.launch_failed})


class HostFailed(TunesmithError):
    """The host did not become ready, or stopped working."""

    code = ErrorCode.host_unavailable


@dataclass(frozen=True)
class Stop:
    """The decision to end a host."""

    reason: StopReason
    error: HostFailed | None = None


def find_stop(sweep: Sweep, host: Host, facts: HostWork, machine: Machine | None) -> Stop | None:
    """Return why a host must end now, or None; the first reason of several counts."""
    if machine is not None and (stop := _check_machine(machine)) is not None:
        return stop
    if _reaches_cap(sweep, host):
        return Stop(StopReason.spend_cap)
    if not facts.has_work:
        return Stop(StopReason.job_ended)
    if host.status is HostStatus.ready:
        return _check_ready(sweep, host, facts)
    return _check_boot(sweep, host)


def _check_machine(machine: Machine) -> Stop | None:
    if machine.interruption_notice is not None:
        return Stop(StopReason.interrupted)
    lost = (MachineState.unhealthy, MachineState.stopped, MachineState.terminating, MachineState.terminated)
    if machine.state in lost:
        error = HostFailed(f"The cloud reports that the machine {machine.id} is {machine.state}.")
        return Stop(StopReason.machine_lost, error)
    return None


def _reaches_cap(sweep: Sweep, host: Host) -> bool:
    """Return whether the host could cost more than its cap before a later sweep has ended it.

    That sweep may be made by another keeper, once the lease of this one has ended.
    """
    if host.launched_at is None and host.attempted_at is None:
        return False
    settings = sweep.context.settings
    seconds = 2 * settings.host_sweep_seconds + LEASE_SECONDS
    if host.status is HostStatus.ready:
        seconds += settings.host_stop_seconds
    ahead = price_duration(host.usd_per_hour, timedelta(seconds=seconds))
    return compute_spend(host, sweep.now) + ahead > host.max_usd


def _check_ready(sweep: Sweep, host: Host, facts: HostWork) -> Stop | None:
    settings = sweep.context.settings
    if not facts.workers:
        seen = max(filter(None, (facts.last_seen_at, host.ready_at)))
        if sweep.has_passed(seen, settings.host_lost_seconds):
            error = HostFailed(
                f"Its worker was last seen at {seen.isoformat(timespec='seconds')}.",
                "The machine may have crashed, or its tunnel is interrupted.",
            )
            return Stop(StopReason.worker_lost, error)
        return None
    if not facts.is_busy and sweep.has_passed(host.last_busy_at or host.ready_at, host.idle_seconds):
        return Stop(StopReason.idle)
    return None


def _check_boot(sweep: Sweep, host: Host) -> Stop | None:
    limit = sweep.context.settings.host_boot_seconds
    if not sweep.has_passed(host.launched_at, limit):
        return None
    waits_for = "machine did not run" if host.status is HostStatus.booting else "worker announced no GPU"
    error = HostFailed(
        f"The {waits_for} within {limit:g} seconds.",
        "The log of the machine's first start is in the console of the cloud. TUNESMITH_HOST_BOOT_SECONDS "
        "is the limit.",
    )
    return Stop(StopReason.boot_timeout, error)
