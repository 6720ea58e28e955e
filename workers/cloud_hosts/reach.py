"""Which hosts the keys of the cloud reach: their machines are in this account and region.

The keys of another account do not show a machine that is still billed. A host out of reach is therefore never
called ended: only a person can say that its machine has ended, or that the account is the same.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import update
from sqlmodel import col

from app.storage.database import transaction
from app.tables import Host
from trainers.runtime.error_codes import ErrorCode
from workers.cloud_hosts.context import Sweep, report
from workers.clouds.protocol import CloudError, CloudErrorKind, Machine

logger = logging.getLogger(__name__)


class HostOutOfReach(CloudError):
    """The keys show neither the machine of a host nor that it has ended."""

    code = ErrorCode.host_out_of_reach

    def __init__(self, message: str, hint: str) -> None:
        """Create an error."""
        super().__init__(CloudErrorKind.unauthorized, message)
        self.hint = hint


def find_accounts(sweep: Sweep, hosts: Sequence[Host], listed: Collection[str], faults: list[str]) -> Sweep:
    """Return the sweep with the account of the keys, and the accounts of hosts that are the same one.

    The listed machines are in the account of the keys, whatever it was called when they were launched. If the
    cloud does not state the account, the absence of a machine means nothing in this sweep.
    """
    account: str | None = None
    with report(faults, "the account of the keys is unknown"):
        account = sweep.context.cloud.read_account()
    seen = {host.account for host in hosts if host.machine_id in listed and host.account is not None}
    other = {host.account for host in hosts if host.account is not None} - seen - {account}
    own: set[str] | None = None
    with report(faults, "the accounts of hosts are unknown"):
        own = sweep.context.cloud.find_own_accounts({mark for mark in other if mark is not None})
    if own is None:
        return replace(sweep, account=account, is_listed=False)
    own |= {mark for mark in (*seen, account) if mark is not None}
    return replace(sweep, account=account, own_accounts=frozenset(own))


def find_barrier(sweep: Sweep, host: Host, machine: Machine | None) -> HostOutOfReach | None:
    """Return why the keys do not reach a host that may have a machine; None if they do.

    Without the list of machines nothing is concluded from the absence of one, so there is no barrier either.
    """
    if host.attempted_at is None or machine is not None:
        return None
    region = sweep.context.cloud.region
    if region not in (None, host.region):
        return HostOutOfReach(
            f"its machine {host.machine_id or '(of an unknown id)'} is in {host.region}, and the worker with "
            f"the keys sees {region} only. It is billed, and nothing ends it.",
            f"Let the variables of that worker name {host.region} until the host has ended.",
        )
    if not sweep.is_listed or host.account in sweep.own_accounts:
        return None
    named = f"the account {host.account}" if host.account is not None else "an account that is not recorded"
    return HostOutOfReach(
        f"its machine {host.machine_id or '(of an unknown id)'} was launched in {named} of {host.cloud}, "
        f"which is not known to be that of the keys now ({sweep.account or 'unknown'}). It may be billed, "
        "and nothing ends it.",
        "Give the worker keys of the account that launched it until the host has ended. If the keys are of "
        "that account, or its machine has ended, settle it with POST /api/v1/hosts/{host_id}/settle.",
    )


def record_account(sweep: Sweep, host: Host) -> None:
    """Write the present mark of the account to the hosts of a listed one: it was launched in this account."""
    if sweep.account is None or host.account == sweep.account:
        return
    same = col(Host.id) == host.id if host.account is None else col(Host.account) == host.account
    statement = update(Host).where(same, col(Host.cloud) == host.cloud).values(account=sweep.account)
    logger.info("the machine of host %s shows that its account is %s", host.id, sweep.account)
    with transaction() as session:
        session.execute(statement.execution_options(synchronize_session=False))
