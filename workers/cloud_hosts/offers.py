"""The offers of a cloud, which the API shows and checks requests by: it holds no key of the cloud."""

from datetime import timedelta

from sqlalchemy import select
from sqlmodel import col

from app.hosts import lifecycle
from app.storage.database import read_session, transaction
from app.tables import CloudState, JobHost
from workers.cloud_hosts.context import Sweep, report

REFRESH_SECONDS = 1800.0
# While a job waits for an offer that the cloud does not make: capacity returns within minutes.
WAITING_SECONDS = 120.0


def refresh(sweep: Sweep, faults: list[str]) -> None:
    """Read the offers if they are due; a failure is added to the faults, and the old ones stay."""
    with read_session() as session:
        state = session.get_one(CloudState, sweep.lease.cloud)
        # Later the job has failed, unless somebody has cancelled it before.
        seconds = sweep.context.settings.host_launch_seconds + 2 * WAITING_SECONDS
        missing = select(col(JobHost.job_id)).where(
            col(JobHost.cloud) == sweep.lease.cloud,
            col(JobHost.unoffered_at) > sweep.now - timedelta(seconds=seconds),
        )
        waits = session.scalar(missing.limit(1)) is not None
    seconds = WAITING_SECONDS if waits else REFRESH_SECONDS
    if state.offers_at is not None and not sweep.has_passed(state.offers_at, seconds):
        return
    with report(faults, "the offers cannot be read"):
        offers = [offer.model_dump(mode="json") for offer in sweep.context.cloud.list_offers()]
        with transaction() as session:
            values = {"offers": offers, "offers_at": sweep.context.clock(0)}
            lifecycle.update_cloud(session, sweep.lease, values)
