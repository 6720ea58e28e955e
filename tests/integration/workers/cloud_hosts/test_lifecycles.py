"""No path leaves a machine billed, whatever is lost between API, keeper, database and cloud."""

import pytest

from app.settings import Settings
from tests.integration.workers.cloud_hosts.simulated_cloud import FaultRates
from tests.integration.workers.cloud_hosts.simulation import Simulation

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@on_sqlite
def test_hosts_end_with_their_machines_in_any_order_of_faults(settings: Settings) -> None:
    settings.max_hosts = 1000
    report = Simulation(settings, 1, FaultRates()).run(40)
    print(report)
    report.check()
