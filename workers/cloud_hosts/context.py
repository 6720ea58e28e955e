"""What a keeper works with, and one look at the rows and workers of its hosts."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import or_, select
from sqlmodel import Session, col

from app.hosts.lifecycle import Clock, KeeperLease, LeaseTaken
from app.settings import Settings
from app.storage.database import database_now
from app.tables import FINISHED, HELD, Deployment, DeploymentStatus, Host, HostStatus, Run, Worker
from app.workers.service import MAX_MISSED_HEARTBEATS
from workers.clouds.protocol import Cloud, CloudError
from workers.doctor.check_result import CheckState
from workers.doctor.hardware import TORCH

# How long a launch may be invisible in the cloud's list, after a response was lost: twice the longest delays
# that the clouds document.
SETTLE_SECONDS = 120.0
# Longer than any single call to a cloud may take.
LEASE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class HostTunnels(Protocol):
    """The connections through which launched hosts reach the control plane."""

    def keep(self, hosts: Sequence[Host]) -> None:
        """Open a tunnel to each of these hosts that has none, and close all others; returns at once."""
        ...


@dataclass(frozen=True)
class KeeperContext:
    """A cloud, and how its hosts are launched and reached."""

    cloud: Cloud
    installation: str
    settings: Settings
    tunnels: HostTunnels
    make_user_data: Callable[[Host, str], str]
    """Returns the user data of a host that joins with this API key."""
    clock: Clock = database_now
    accepted: dict[str, datetime] = field(default_factory=dict)
    """Since when the cloud has accepted requests to terminate a machine that its list still contains."""


@dataclass
class HostWork:
    """The workers of a host and their work, as the database has them."""

    workers: list[Worker] = field(default_factory=list)
    """Its workers that are alive."""
    last_seen_at: datetime | None = None
    """When any worker of it was last seen."""
    has_left: bool = True
    """Whether its last worker has written that it stopped, or there was none."""
    is_busy: bool = False
    """Whether one of its workers holds a run or a deployment."""
    has_work: bool = True
    """Whether its job has a run that has not ended; true for a host of no job."""

    @property
    def has_gpu(self) -> bool:
        """Whether a worker has announced GPUs on which CUDA works in torch: `workers doctor` has tried it."""
        return any(worker.hardware.get("gpus") and _torch_works(worker) for worker in self.workers)


@dataclass(frozen=True)
class Sweep:
    """One comparison of rows and machines."""

    context: KeeperContext
    lease: KeeperLease
    now: datetime
    """The time before the machines were listed."""
    is_listed: bool
    """Whether the cloud has returned its machines."""
    account: str | None = None
    """The mark of the account of the keys; None if the cloud has not stated it."""
    own_accounts: frozenset[str] = frozenset()
    """The marks of hosts that are of this account."""
    gaps: list[list[str]] = field(default_factory=list)
    """Ids of hosts, from and to, that were requested in times without a sweep."""
    crowded_hosts: frozenset[str] = frozenset()
    """Hosts with a machine that is not theirs and has not ended: none is launched for them before."""

    def has_passed(self, since: datetime | None, seconds: float) -> bool:
        """Return whether so many seconds have passed since a time; never since None."""
        return since is not None and self.now - since >= timedelta(seconds=seconds)


@contextmanager
def report(faults: list[str], what: str) -> Iterator[None]:
    """Add a failure of the body to the faults, also an unexpected one; only LeaseTaken ends the sweep."""
    try:
        yield
    except LeaseTaken:
        raise
    except CloudError as error:
        faults.append(f"{what}: {error.message}")
    except Exception as error:
        # A response of another shape, or a value that cannot be used: its text may contain anything.
        logger.exception("%s", what)
        faults.append(f"{what}: an unexpected {type(error).__name__}, see the log of this worker.")


def load_hosts(session: Session, sweep: Sweep, named: Iterable[str]) -> list[Host]:
    """Return the hosts of the cloud that have not ended, and those that machines name, oldest first."""
    unfinished = [status for status in HostStatus if not status.finished]
    wanted = or_(col(Host.status).in_(unfinished), col(Host.id).in_(list(named)))
    statement = select(Host).where(col(Host.cloud) == sweep.lease.cloud, wanted).order_by(col(Host.id))
    return list(session.scalars(statement))


def load_facts(session: Session, sweep: Sweep, hosts: Sequence[Host]) -> dict[str, HostWork]:
    """Return the facts of hosts by their ids."""
    facts = {host.id: HostWork() for host in hosts}
    oldest = sweep.now - timedelta(seconds=MAX_MISSED_HEARTBEATS * sweep.context.settings.heartbeat_seconds)
    host_of: dict[str, str] = {}
    workers = select(Worker).where(col(Worker.host_id).in_(list(facts))).order_by(col(Worker.id))
    for worker in session.scalars(workers) if facts else ():
        assert worker.host_id is not None, "selected by it"
        found = facts[worker.host_id]
        found.has_left = worker.stopped_at is not None
        if worker.last_seen_at is not None:
            found.last_seen_at = max(worker.last_seen_at, found.last_seen_at or worker.last_seen_at)
            if worker.stopped_at is None and worker.last_seen_at > oldest:
                found.workers.append(worker)
                host_of[worker.id] = worker.host_id
    if host_of:
        for worker_id in _find_busy(session, list(host_of)):
            facts[host_of[worker_id]].is_busy = True
    jobs = {host.job_id: host.id for host in hosts if host.job_id is not None}
    if jobs:
        working = select(col(Run.job_id)).where(
            col(Run.job_id).in_(list(jobs)), col(Run.own_host), col(Run.status).not_in(FINISHED)
        )
        found_jobs = set(session.scalars(working))
        for job_id, host_id in jobs.items():
            facts[host_id].has_work = job_id in found_jobs
    return facts


def _torch_works(worker: Worker) -> bool:
    checks = (worker.host_report or {}).get("checks", [])
    return any(check["name"] == TORCH and check["state"] == CheckState.ok for check in checks)


def _find_busy(session: Session, worker_ids: list[str]) -> Iterable[str]:
    runs = select(col(Run.worker_id)).where(col(Run.worker_id).in_(worker_ids), col(Run.status).in_(HELD))
    held = [status for status in DeploymentStatus if status.held]
    engines = select(col(Deployment.worker_id)).where(
        col(Deployment.worker_id).in_(worker_ids), col(Deployment.status).in_(held)
    )
    found = {*session.scalars(runs), *session.scalars(engines)}
    return [worker_id for worker_id in found if worker_id is not None]
