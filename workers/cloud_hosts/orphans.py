"""Machines without a row that wants them: orphans, which are ended, and those that only a person may end.

A row is committed before its machine is launched. Machines of this installation without a row are orphans, if
the database has seen the time in which their hosts were requested. It has not if there was no sweep then, as
after the restoration of an older state: such a machine may be in use by a copy of the installation. So may
the machines of other installations in the account.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from app.tables import CloudState, Host
from app.tables.base import new_id
from workers.cloud_hosts import terminate
from workers.cloud_hosts.context import Sweep, report
from workers.clouds.protocol import Machine, MachineState

FOREIGN_SECONDS = 300.0
MAX_UNCLAIMED = 100
# A sweep is due several times a minute. A worker that restarts takes less, and a backup is older.
GAP_SECONDS = 300.0
MAX_GAPS = 50
# The clocks of the API, which makes ids, and of the database may differ by this.
CLOCK_SECONDS = 60.0

logger = logging.getLogger(__name__)


class StrayMachines:
    """The machines that no row wants, as one keeper has met them."""

    def __init__(self) -> None:
        self._counted: set[str] = set()
        self._logged: set[str] = set()
        self._foreign: list[Machine] = []
        self._foreign_at: datetime | None = None

    def end_orphans(
        self, sweep: Sweep, machines: Sequence[Machine], hosts: Sequence[Host], faults: list[str]
    ) -> int:
        """Terminate the machines that no row wants; return how many of them are new."""
        rows = {host.id: host for host in hosts}
        count = 0
        for machine in machines:
            host = rows.get(machine.host_id or "")
            if machine.state.is_gone or not is_surplus(machine, host) or is_unseen(sweep, machine, host):
                continue
            if machine.state is not MachineState.terminating and machine.id not in self._counted:
                self._counted.add(machine.id)
                count += 1
                logger.error("terminating the orphan %s, tagged as host %s", machine.id, machine.host_id)
            with report(faults, f"the machine {machine.id} belongs to no host and is billed"):
                terminate.request_end(sweep, machine.id, machine)
        return count

    def list_unclaimed(
        self, sweep: Sweep, machines: Sequence[Machine], hosts: Sequence[Host], faults: list[str]
    ) -> list[dict[str, Any]]:
        """Return the machines that are neither used nor terminated here, and log each once."""
        rows = {host.id: host for host in hosts}
        newer = [m for m in machines if is_unseen(sweep, m, rows.get(m.host_id or ""))]
        if self._foreign_at is None or sweep.has_passed(self._foreign_at, FOREIGN_SECONDS):
            with report(faults, "the machines of other installations are unknown"):
                self._foreign = sweep.context.cloud.list_foreign(sweep.context.installation)
                self._foreign_at = sweep.now
        known = sweep.context.settings.other_installations
        foreign = [machine for machine in self._foreign if machine.installation not in known]
        for machine in (*newer, *foreign):
            if machine.id not in self._logged and not machine.state.is_gone:
                self._logged.add(machine.id)
                logger.warning(_explain(machine, is_foreign=machine in foreign))
        return [
            {
                "machine_id": machine.id,
                "name": machine.name,
                "installation_id": machine.installation,
                "host_id": machine.host_id,
                "state": machine.state,
                "foreign": machine in foreign,
            }
            for machine in (*newer, *foreign)
            if not machine.state.is_gone
        ][:MAX_UNCLAIMED]


def is_surplus(machine: Machine, host: Host | None) -> bool:
    """Return whether no row wants the machine; once that is so, it stays so."""
    if host is None or host.status.finished:
        return True
    if host.machine_id is not None:
        return machine.id != host.machine_id
    return machine.epoch != host.epoch


def is_unseen(sweep: Sweep, machine: Machine, host: Host | None) -> bool:
    """Return whether a machine without a row is of a host that was requested in a time without a sweep."""
    if host is not None or machine.host_id is None:
        return False
    return any(first <= machine.host_id <= last for first, last in sweep.gaps)


def find_gaps(state: CloudState, now: datetime) -> list[list[str]]:
    """Return the times without a sweep, also one that ends now, as ids of hosts, which sort by their time."""
    margin = timedelta(seconds=CLOCK_SECONDS)
    if state.listed_at is not None and now - state.listed_at <= timedelta(seconds=GAP_SECONDS):
        return state.gaps
    first = "" if state.listed_at is None else new_id("host", created_at=state.listed_at - margin)
    gaps = [*state.gaps, [first, new_id("host", created_at=now + margin)]]
    if len(gaps) > MAX_GAPS:
        gaps[:2] = [[gaps[0][0], gaps[1][1]]]
    return gaps


def find_crowded(machines: Sequence[Machine], hosts: Sequence[Host]) -> frozenset[str]:
    """Return the ids of hosts with a surplus machine, which may be billed."""
    rows = {host.id: host for host in hosts}
    named = [(machine, rows[machine.host_id]) for machine in machines if machine.host_id in rows]
    return frozenset(
        host.id for machine, host in named if not machine.state.is_gone and is_surplus(machine, host)
    )


def _explain(machine: Machine, *, is_foreign: bool) -> str:
    what = f"The machine {machine.id} ({machine.name}) is "
    if is_foreign:
        return what + (
            f"of another installation of Tunesmith, {machine.installation}, and may be billed. It is not "
            "terminated from here. If that installation has ended, terminate the machine in the console of "
            "the cloud; if it has not, name it in TUNESMITH_OTHER_INSTALLATIONS."
        )
    return what + (
        f"of the host {machine.host_id}, which the database of this installation does not contain, and may "
        "be billed. It is not terminated, since another copy of the installation may use it. If there is "
        "none, take it over with POST /api/v1/hosts/take-over."
    )
