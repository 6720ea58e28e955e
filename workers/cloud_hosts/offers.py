"""The offers of a cloud, which the API shows and checks requests by: it holds no key of the cloud."""

from app.hosts import lifecycle
from app.storage.database import read_session, transaction
from app.tables import CloudState
from workers.cloud_hosts.context import Sweep
from workers.cloud_hosts.faults import report

REFRESH_SECONDS = 1800.0


def refresh(sweep: Sweep, faults: list[str]) -> None:
    """Read the offers if they are due; a failure is added to the faults, and the old ones stay."""
    with read_session() as session:
        state = session.get_one(CloudState, sweep.lease.cloud)
    if state.offers_at is not None and not sweep.has_passed(state.offers_at, REFRESH_SECONDS):
        return
    with report(faults, f"{sweep.lease.cloud} does not list its offers"):
        offers = [offer.model_dump(mode="json") for offer in sweep.context.cloud.list_offers()]
        with transaction() as session:
            values = {"offers": offers, "offers_at": sweep.context.clock(0)}
            lifecycle.update_cloud(session, sweep.lease, values)
