"""The worker of a launched host joins under its row, renews the machine's timer, and ends with the host."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.storage.database import transaction
from app.tables import Host, HostStatus
from trainers.configs import Queue
from trainers.configs.clouds import CloudName
from workers.hosts.launched_host import HostRenewal, can_deploy, load_host
from workers.hosts.worker import register_worker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def add_host(settings: Settings, **values: Any) -> str:
    host = Host(
        cloud=CloudName.aws, type="g5.xlarge", region="us-east-1", usd_per_hour=1.0, max_usd=5.0,
        idle_seconds=600.0, **values,
    )  # fmt: skip
    with transaction() as session:
        session.add(host)
    settings.host_id = host.id
    return host.id


def test_a_worker_carries_the_host_and_the_job_for_which_it_was_launched(settings: Settings) -> None:
    host_id = add_host(settings, status=HostStatus.joining, job_id="job_1")
    worker = register_worker(settings, [Queue.cpu], "w")
    assert (worker.registration["host_id"], worker.job_id) == (host_id, "job_1")
    with transaction() as session:
        assert not can_deploy(session, host_id, "job_1"), "a deployment would end with the job"
        assert not can_deploy(session, host_id, None), "CUDA may not work yet"
        session.get_one(Host, host_id).status = HostStatus.ready
        session.flush()
        assert can_deploy(session, host_id, None)


def test_a_worker_of_a_host_that_ends_does_not_start(settings: Settings) -> None:
    add_host(settings, status=HostStatus.stopping)
    with pytest.raises(SystemExit, match="takes no more work"):
        load_host(settings)
    settings.host_id = "host_unknown"
    with pytest.raises(SystemExit, match="is unknown"):
        load_host(settings)


def test_a_heartbeat_renews_the_machine_while_it_is_wanted_and_then_stops_the_worker_once(
    settings: Settings, tmp_path: Path
) -> None:
    host_id = add_host(settings, status=HostStatus.ready)
    settings.host_renewal_file = tmp_path / "wanted"
    stopped: list[int] = []
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        stopped.append(number)
        asked.set()

    previous = signal.signal(signal.SIGTERM, note)
    try:
        renewal = HostRenewal(settings)
        renewal.renew()
        assert settings.host_renewal_file.exists()
        settings.host_renewal_file.unlink()
        with transaction() as session:
            session.get_one(Host, host_id).status = HostStatus.stopping
        renewal.renew()
        renewal.renew()
        assert asked.wait(60)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert stopped == [signal.SIGTERM]
    assert not settings.host_renewal_file.exists()
