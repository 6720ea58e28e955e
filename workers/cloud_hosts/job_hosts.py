"""Hosts of jobs: a row for each job whose next run waits for the host that the job asked for."""

import logging
from collections.abc import Sequence
from itertools import takewhile

from sqlalchemy import Select, exists, select
from sqlmodel import Session, col

from app.hosts.service import count_for_insert
from app.hosts.spend import HOUR_SECONDS, sum_spend
from app.runs import lifecycle as runs
from app.tables import CloudState, Host, HostStatus, Job, JobHost, Run, RunStatus
from trainers.configs.clouds.offers import Offer
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.cloud_hosts.context import Sweep

# A host of a job that did not become ready is replaced this much later, each time doubled.
RETRY_SECONDS = 60.0
MAX_FAILURES = 5
# A host that could not work for this long before its cap is not launched.
MIN_USEFUL_SECONDS = 600.0

logger = logging.getLogger(__name__)


class HostBudgetUsed(TunesmithError):
    """The hosts of a job have cost what it allows."""

    code = ErrorCode.host_budget_used


class NoHostForJob(TunesmithError):
    """No host of the job became ready."""

    code = ErrorCode.host_unavailable


def create_waiting(session: Session, sweep: Sweep) -> None:
    """Insert a host for each job that needs one; fail the runs of a job that can have none any more."""
    for wanted in session.scalars(_select_waiting(sweep)).all():
        earlier = session.scalars(
            select(Host).where(col(Host.job_id) == wanted.job_id).order_by(col(Host.id))
        ).all()
        offer = _find_offer(session, wanted)
        if (offer is None) != (wanted.unoffered_at is not None):
            wanted.unoffered_at = sweep.now if offer is None else None
        if (error := _find_end(sweep, wanted, earlier, offer)) is not None:
            _fail_runs(session, wanted, error)
        elif offer is not None and _is_due(sweep, wanted, earlier) and _has_room(session, sweep):
            _insert(session, sweep, wanted, offer, earlier)


def _select_waiting(sweep: Sweep) -> Select[JobHost]:
    waits = exists().where(
        col(Run.job_id) == col(JobHost.job_id),
        col(Run.own_host),
        col(Run.status) == RunStatus.queued,
        col(Run.unmet_needs) == 0,
    )
    ended = [status for status in HostStatus if status.finished]
    has_host = exists().where(col(Host.job_id) == col(JobHost.job_id), col(Host.status).not_in(ended))
    statement = select(JobHost).where(col(JobHost.cloud) == sweep.lease.cloud, waits, ~has_host)
    return statement.order_by(col(JobHost.job_id))


def _find_end(
    sweep: Sweep, wanted: JobHost, earlier: Sequence[Host], offer: Offer | None
) -> TunesmithError | None:
    """Return why no further host is launched for the job, or None."""
    failures = _count_failures(wanted, earlier)
    if failures >= MAX_FAILURES:
        last = (earlier[-1].error or {}).get("message", "")
        return NoHostForJob(
            f"{failures} hosts of the job in a row did not become ready. The last: {last}",
            "Remove the cause and retry the job, which tries as many hosts again; or submit it with another "
            "type or region: GET /api/v1/hosts/offers.",
        )
    limit = sweep.context.settings.host_launch_seconds
    if sweep.has_passed(wanted.unoffered_at, limit):
        kind = "spot type" if wanted.spot else "type"
        return NoHostForJob(
            f"{wanted.cloud} has not offered the {kind} {wanted.type} in {wanted.region} for {limit:g} s.",
            "Submit the job with a type and a region of GET /api/v1/hosts/offers, or retry it later. "
            "TUNESMITH_HOST_LAUNCH_SECONDS is the limit.",
        )
    spent = sum_spend(earlier, sweep.now)
    rate = offer.usd_per_hour if offer is not None else 0.0
    if not earlier or spent + rate * MIN_USEFUL_SECONDS / HOUR_SECONDS <= wanted.max_usd:
        return None
    return HostBudgetUsed(
        f"The hosts of the job have cost {spent:.2f} of {wanted.max_usd:.2f} US dollars, and the rest pays "
        "for less than ten minutes.",
        "Submit a job that begins with the last checkpoint, and a higher max_usd.",
    )


def _count_failures(wanted: JobHost, earlier: Sequence[Host]) -> int:
    """Return how many of the last hosts in a row were never ready, since a person has started the job."""

    def counts(host: Host) -> bool:
        is_recent = wanted.counted_from is None or host.created_at >= wanted.counted_from
        return is_recent and host.ready_at is None

    return sum(1 for _ in takewhile(counts, reversed(earlier)))


def _is_due(sweep: Sweep, wanted: JobHost, earlier: Sequence[Host]) -> bool:
    failures = _count_failures(wanted, earlier)
    return not failures or sweep.has_passed(earlier[-1].ended_at, RETRY_SECONDS * 2 ** (failures - 1))


def _has_room(session: Session, sweep: Sweep) -> bool:
    return count_for_insert(session) < sweep.context.settings.max_hosts


def _find_offer(session: Session, wanted: JobHost) -> Offer | None:
    """Return the offer as the cloud makes it now; None if it makes none any more."""
    state = session.get_one(CloudState, wanted.cloud)
    offers = [Offer.model_validate(offer) for offer in state.offers]
    key = wanted.type, wanted.region, wanted.spot
    return next((offer for offer in offers if (offer.type, offer.region, offer.spot) == key), None)


def _insert(session: Session, sweep: Sweep, wanted: JobHost, offer: Offer, earlier: Sequence[Host]) -> None:
    job = session.get(Job, wanted.job_id)
    host = Host(
        cloud=wanted.cloud,
        type=wanted.type,
        region=wanted.region,
        spot=wanted.spot,
        gpu_name=offer.gpu_name,
        gpu_count=offer.gpu_count,
        usd_per_hour=offer.usd_per_hour,
        max_usd=wanted.max_usd - sum_spend(earlier, sweep.now),
        idle_seconds=sweep.context.settings.host_idle_seconds,
        job_id=wanted.job_id,
        created_by=job.created_by if job is not None else "",
        created_at=sweep.now,
    )
    session.add(host)
    session.flush()
    logger.info("host %s is for job %s", host.id, wanted.job_id)


def _fail_runs(session: Session, wanted: JobHost, error: TunesmithError) -> None:
    waiting = select(col(Run.id)).where(
        col(Run.job_id) == wanted.job_id, col(Run.own_host), col(Run.status) == RunStatus.queued
    )
    values = {"error": error.as_dict()}
    for run_id in session.scalars(waiting.order_by(col(Run.id))).all():
        runs.move(session, run_id, RunStatus.failed, sources=[RunStatus.queued], values=values, data=values)
