"""The keeper of one cloud: with each sweep it compares the machines with the rows of hosts, both ways.

A lease lets one worker at a time keep a cloud. The machines are listed before the rows are read: a row is
always older than its machine, so a machine without a row is an orphan. Whatever fails is tried again with the
next sweep, and nothing that must be terminated is ever given up.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from app.hosts import lifecycle
from app.hosts.lifecycle import KeeperLease, LeaseTaken
from app.storage.database import read_session, transaction
from app.tables import CloudState, Host, HostStatus, StopReason
from workers.cloud_hosts import job_hosts, launch, offers, reach, terminate
from workers.cloud_hosts.context import (
    LEASE_SECONDS,
    HostWork,
    KeeperContext,
    Sweep,
    load_facts,
    load_hosts,
    report,
)
from workers.cloud_hosts.orphans import StrayMachines, find_crowded, find_gaps
from workers.cloud_hosts.stop_rules import HostFailed, Stop, find_stop
from workers.clouds.protocol import CloudError, CloudErrorKind, Machine, MachineState

MAX_SHOWN_FAULTS = 5
# An idle host may end this much earlier than its idle time says.
BUSY_WRITE_SECONDS = 60.0
HELD = (
    "the hosts at {cloud} are held since the database was restored at {time}: nothing is launched or "
    "terminated, and machines may be billed, until POST /api/v1/hosts/take-over confirms that the original "
    "installation has ended"
)

logger = logging.getLogger(__name__)


class CloudSweepFailed(Exception):
    """Some of what a sweep had to do has failed; the next one does it again."""


class HostKeeper:
    """Keeps the hosts of one cloud while this worker has the lease."""

    def __init__(self, context: KeeperContext, worker_id: str) -> None:
        self._context = context
        self._worker_id = worker_id
        self._lease: KeeperLease | None = None
        self._strays = StrayMachines()

    def sweep(self) -> None:
        """Compare machines and rows once, unless another worker keeps the cloud; raises CloudSweepFailed."""
        clock = self._context.clock
        with transaction() as session:
            self._lease = lifecycle.take_lease(
                session, self._context.cloud.name, self._worker_id, LEASE_SECONDS, clock
            )
            now: datetime = session.scalars(select(clock(0))).one()
        if self._lease is None:
            self._context.tunnels.keep([])
            return
        try:
            faults = self._sweep(self._lease, now)
        except LeaseTaken:
            logger.warning("another worker keeps the hosts of %s by now", self._lease.cloud)
            return
        if faults:
            raise CloudSweepFailed("; ".join(faults[:MAX_SHOWN_FAULTS]))

    def leave(self) -> None:
        """Let another worker keep the cloud at once."""
        self._context.tunnels.keep([])
        if self._lease is not None:
            with transaction() as session:
                lifecycle.release_lease(session, self._lease)

    def _sweep(self, lease: KeeperLease, now: datetime) -> list[str]:
        faults: list[str] = []
        machines: list[Machine] = []
        with report(faults, "the machines cannot be listed"):
            machines = self._context.cloud.list_tagged(self._context.installation)
        state = _read_state(lease)
        gaps = find_gaps(state, now)
        sweep = Sweep(self._context, lease, now, is_listed=not faults, gaps=gaps)
        if sweep.is_listed:
            for machine_id in self._context.accepted.keys() - {machine.id for machine in machines}:
                del self._context.accepted[machine_id]
        if state.held_at is None:
            with report(faults, "the hosts of jobs"), transaction() as session:
                job_hosts.create_waiting(session, sweep)
        with read_session() as session:
            hosts = load_hosts(session, sweep, {m.host_id for m in machines if m.host_id is not None})
            facts = load_facts(session, sweep, [host for host in hosts if not host.status.finished])
        sweep = reach.find_accounts(sweep, hosts, {machine.id for machine in machines}, faults)
        n_orphans = 0
        if state.held_at is None:
            n_orphans = self._keep(sweep, machines, hosts, facts, faults)
        else:
            faults.insert(0, HELD.format(cloud=lease.cloud, time=state.held_at.isoformat(timespec="seconds")))
        unclaimed = self._strays.list_unclaimed(sweep, machines, hosts, faults)
        offers.refresh(sweep, faults)
        self._record(sweep, state, n_orphans, unclaimed, faults)
        return faults

    def _keep(
        self,
        sweep: Sweep,
        machines: Sequence[Machine],
        hosts: Sequence[Host],
        facts: dict[str, HostWork],
        faults: list[str],
    ) -> int:
        """Do what the rows need; return the number of new orphans."""
        # What costs money for nothing comes first.
        n_orphans = self._strays.end_orphans(sweep, machines, hosts, faults)
        sweep = replace(sweep, crowded_hosts=find_crowded(machines, hosts))
        unfinished = [host for host in hosts if not host.status.finished]
        by_id = {machine.id: machine for machine in machines}
        for host in sorted(unfinished, key=lambda host: host.status.wanted):
            machine = by_id.get(host.machine_id) if host.machine_id else _find_unrecorded(machines, host)
            self._step(sweep, host, facts[host.id], machine, faults)
        # A worker that saves its runs still needs its tunnel.
        reached = [host for host in unfinished if host.status is not HostStatus.terminating]
        with report(faults, "the tunnels to hosts"):
            self._context.tunnels.keep([host for host in reached if host.machine_id is not None])
        return n_orphans

    def _step(
        self, sweep: Sweep, host: Host, facts: HostWork, machine: Machine | None, faults: list[str]
    ) -> None:
        """Bring one host forward; a failure does not keep the others waiting."""
        with report(faults, f"host {host.id}"):
            _keep_lease(sweep)
            try:
                if machine is not None:
                    reach.record_account(sweep, host)
                if (barrier := reach.find_barrier(sweep, host, machine)) is not None:
                    # The absence of its machine means nothing.
                    host = self._decide_end(replace(sweep, is_listed=False), host, facts, None)
                    raise barrier
                self._advance(sweep, host, facts, machine)
            except CloudError as error:
                is_overdue = host.status is HostStatus.terminating and terminate.record_failure(sweep, host)
                terminate.record_problem(sweep, host, error, is_overdue=is_overdue)
                if not is_overdue:
                    raise
                # The worker's problems are cut after some hundred characters.
                faults.insert(
                    0,
                    f"the termination of host {host.id} (machine {host.machine_id}) is overdue, and it is "
                    f"billed: {error.message}",
                )
            else:
                terminate.record_problem(sweep, host, None)

    def _advance(self, sweep: Sweep, host: Host, facts: HostWork, machine: Machine | None) -> None:
        if host.machine_id is None and machine is not None:
            launch.adopt(host, machine)
            return
        host = self._decide_end(sweep, host, facts, machine)
        if host.status is HostStatus.terminating:
            terminate.terminate(sweep, host, machine)
        elif host.status is HostStatus.launching:
            self._launch(sweep, host)
        elif machine is not None and not (host.status is HostStatus.ready and facts.is_busy):
            _follow_boot(sweep, host, facts, machine)

    def _decide_end(self, sweep: Sweep, host: Host, facts: HostWork, machine: Machine | None) -> Host:
        """Return the host as it is after the decision whether it ends, which needs no call to the cloud."""
        if host.status.wanted and (stop := self._find_stop(sweep, host, facts, machine)) is not None:
            # None if another process has decided it meanwhile: the next sweep continues.
            host = terminate.begin_stop(sweep, host, facts, stop) or host
        if host.status is HostStatus.stopping:
            host = terminate.end_stop(sweep, host, facts) or host
        is_old = host.last_busy_at is None or sweep.has_passed(host.last_busy_at, BUSY_WRITE_SECONDS)
        if host.status is HostStatus.ready and facts.is_busy and is_old:
            _write(sweep, host, last_busy_at=sweep.now)
        return host

    def _find_stop(self, sweep: Sweep, host: Host, facts: HostWork, machine: Machine | None) -> Stop | None:
        # First what needs no further response of the cloud.
        if (stop := find_stop(sweep, host, facts, machine)) is not None:
            return stop
        is_missing = host.machine_id is not None and machine is None and sweep.is_listed
        if not is_missing or not terminate.is_gone(sweep, host):
            return None
        if facts.workers:
            raise CloudError(
                CloudErrorKind.unauthorized,
                f"{host.cloud} does not know the machine {host.machine_id}, whose worker is alive: either it "
                "has just ended, or the worker with the keys of the cloud has those of another account.",
            )
        reason = StopReason.interrupted if host.spot else StopReason.machine_lost
        return Stop(reason, HostFailed(f"The cloud has ended the machine {host.machine_id}."))

    def _launch(self, sweep: Sweep, host: Host) -> None:
        limit = sweep.context.settings.host_launch_seconds
        is_open = host.attempted_at is None or launch.has_settled(sweep, host)
        if is_open and sweep.has_passed(host.created_at, limit):
            launch.give_up(sweep, host)
        elif launch.may_launch(sweep, host):
            launch.launch(sweep, host)

    def _record(
        self,
        sweep: Sweep,
        state: CloudState,
        n_orphans: int,
        unclaimed: list[dict[str, Any]],
        faults: Sequence[str],
    ) -> None:
        clock = sweep.context.clock
        values: dict[str, Any] = {
            "lease_expires_at": clock(LEASE_SECONDS),
            "error": "; ".join(faults[:MAX_SHOWN_FAULTS]) or None,
            "orphan_count": col(CloudState.orphan_count) + n_orphans,
            "unclaimed": unclaimed,
        }
        if sweep.is_listed:
            values["listed_at"] = sweep.now
            if sweep.gaps != state.gaps:
                values["gaps"] = sweep.gaps
        if sweep.account is not None:
            values["account"] = sweep.account
        if not faults:
            values["swept_at"] = clock(0)
        with transaction() as session:
            lifecycle.update_cloud(session, sweep.lease, values)


def _read_state(lease: KeeperLease) -> CloudState:
    with read_session() as session:
        return session.get_one(CloudState, lease.cloud)


def _keep_lease(sweep: Sweep) -> None:
    """Extend the lease if the calls for other hosts have used half of it; raises LeaseTaken."""
    clock = sweep.context.clock
    is_old = col(CloudState.lease_expires_at) < clock(LEASE_SECONDS / 2)
    with read_session() as session:
        if session.scalar(select(is_old).where(col(CloudState.name) == sweep.lease.cloud)) is False:
            return
    with transaction() as session:
        lifecycle.update_cloud(session, sweep.lease, {"lease_expires_at": clock(LEASE_SECONDS)})


def _find_unrecorded(machines: Sequence[Machine], host: Host) -> Machine | None:
    """Return the machine of the host's last launch request, whose id is not in the row."""
    found = [m for m in machines if (m.host_id, m.epoch) == (host.id, host.epoch) and not m.state.is_gone]
    return min(found, key=lambda machine: machine.id, default=None)


def _follow_boot(sweep: Sweep, host: Host, facts: HostWork, machine: Machine) -> None:
    """Record how far a machine has come."""
    values = {
        "address": machine.address or host.address,
        "ssh_user": machine.ssh_user or host.ssh_user,
        "ssh_host_keys": list(machine.ssh_host_keys) or host.ssh_host_keys,
    }
    runs = machine.state is MachineState.running and machine.address is not None
    if host.status is HostStatus.booting and runs:
        _move(sweep, host, HostStatus.joining, running_at=sweep.now, **values)
    elif host.status is HostStatus.joining and facts.has_gpu:
        _move(sweep, host, HostStatus.ready, ready_at=sweep.now, **values)
    elif any(getattr(host, name) != value for name, value in values.items()):
        _write(sweep, host, **values)


def _move(sweep: Sweep, host: Host, to: HostStatus, **values: object) -> None:
    guards = [lifecycle.is_kept_by(sweep.lease, sweep.context.clock)]
    with transaction() as session:
        lifecycle.move(session, host.id, to, sources=[host.status], guards=guards, values=values)


def _write(sweep: Sweep, host: Host, **values: object) -> None:
    guards = [lifecycle.is_kept_by(sweep.lease, sweep.context.clock), col(Host.status) == host.status]
    with transaction() as session:
        lifecycle.write(session, host.id, values, guards)
