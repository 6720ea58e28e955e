"""Twenty lives of hosts, with a real worker on a machine in namespaces.

Goal: however a life goes, its machine is not billed in the end. Method: the keeper's code with the real
clients and both stand-ins; machines that run the real user data with stubs; and a real worker that joins
the API, PostgreSQL and Redis through forwarded ports by `workers join`. By hand: `-m slow`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from app.settings import Settings
from app.tables import HostStatus, StopReason
from tests.clouds.aws_fault_proxy import AwsFaultProxy
from tests.clouds.faults import Fault
from tests.clouds.host_site import (
    API_PORT,
    BROKER_PORT,
    DATABASE_PORT,
    JOIN,
    NVIDIA_SMI,
    TRAINER_PYTHON,
    Site,
    get_host,
    request_end,
)
from tests.clouds.lambda_stand_in import LambdaStandIn
from tests.clouds.machine import SandboxMachine, require_namespaces
from tests.clouds.machine_room import AwsHall, LambdaHall, MachineHall, MachineRoom, find_workers
from tests.conftest import ROOT
from tests.e2e.platform import wait_until
from tests.integration.app.conftest import database_url, postgres, settings, sqlite
from tests.services import free_port, redis
from trainers.configs.clouds import CloudName
from workers.cloud_hosts import context as keeper_context
from workers.cloud_hosts import launch, terminate
from workers.clouds.aws import AwsCloud
from workers.clouds.lambda_cloud import LambdaCloud
from workers.clouds.protocol import Cloud

__all__ = ["database_url", "postgres", "settings", "sqlite"]


def live_until_requested(site: Site) -> tuple[str, StopReason]:
    host_id = site.create_host()
    site.wait_until_ready(host_id)
    request_end(host_id)
    return host_id, StopReason.requested


def live_until_idle(site: Site) -> tuple[str, StopReason]:
    return site.create_host(idle_seconds=3.0), StopReason.idle


def live_until_the_cap(site: Site) -> tuple[str, StopReason]:
    return site.create_host(max_usd=0.02), StopReason.spend_cap


def live_with_a_worker_that_is_killed_once(site: Site) -> tuple[str, StopReason]:
    host_id = site.create_host()
    site.wait_until_ready(host_id)
    (first,) = find_workers(site.machine_of(host_id))
    first.kill()
    site.run_until(
        lambda: [process.pid for process in find_workers(site.machine_of(host_id))] not in ([], [first.pid]),
        "restarted",
    )
    assert get_host(host_id).status is HostStatus.ready
    request_end(host_id)
    return host_id, StopReason.requested


def live_with_a_machine_that_crashes(site: Site) -> tuple[str, StopReason]:
    host_id = site.create_host()
    site.wait_until_ready(host_id)
    # It hangs: the cloud still calls it running.
    machine = site.machine_of(host_id)
    for process in find_workers(machine):
        process.parent().suspend()
        process.suspend()
    return host_id, StopReason.worker_lost


def live_without_cuda(site: Site) -> tuple[str, StopReason]:
    site.room.has_cuda = False
    host_id = site.create_host()
    site.run_until(lambda: get_host(host_id).status.finished, "ended")
    site.room.has_cuda = True
    return host_id, StopReason.machine_lost


def live_without_a_tunnel(site: Site) -> tuple[str, StopReason]:
    site.has_tunnels = False
    host_id = site.create_host()
    site.run_until(lambda: get_host(host_id).status.finished, "ended")
    site.has_tunnels = True
    return host_id, StopReason.boot_timeout


def live_after_a_lost_launch(site: Site) -> tuple[str, StopReason]:
    site.stand_in.plan.add(LAUNCH[site.cloud.name], Fault.lost_response)
    host_id = site.create_host()
    site.wait_until_ready(host_id)
    assert len([m for m in site.cloud.list_tagged("team") if m.host_id == host_id]) == 1
    request_end(host_id)
    return host_id, StopReason.requested


def live_with_terminations_that_fail(site: Site) -> tuple[str, StopReason]:
    host_id = site.create_host()
    site.wait_until_ready(host_id)
    faults = (Fault.server_error, Fault.rate, Fault.lost_request, Fault.garbled)
    site.stand_in.plan.add(TERMINATE[site.cloud.name], *faults)
    request_end(host_id)
    return host_id, StopReason.requested


def live_while_the_control_plane_is_gone(site: Site) -> tuple[str, StopReason]:
    """Live until the machine ends itself, without a keeper; at Lambda the next keeper ends its cost."""
    host_id = site.create_host()
    site.wait_until_ready(host_id)
    keeper, site.keeper = site.keeper, None
    site.machine_of(host_id).close_tunnel()
    site.run_until(lambda: site.machine_of(host_id).is_off, "shut down by itself")
    # The cloud notices it.
    site.room.step()
    # At AWS its cost has ended without a keeper.
    assert bool(site.room.hall.billed()) == (site.cloud.name is CloudName.lambda_cloud)
    site.keeper = keeper
    return host_id, StopReason.machine_lost


LAUNCH = {CloudName.aws: "RunInstances", CloudName.lambda_cloud: "POST /instance-operations/launch"}
TERMINATE = {
    CloudName.aws: "TerminateInstances",
    CloudName.lambda_cloud: "POST /instance-operations/terminate",
}
LIVES = [
    live_until_requested,
    live_until_idle,
    live_until_the_cap,
    live_with_a_worker_that_is_killed_once,
    live_with_a_machine_that_crashes,
    live_without_cuda,
    live_without_a_tunnel,
    live_after_a_lost_launch,
    live_with_terminations_that_fail,
    live_while_the_control_plane_is_gone,
]


@pytest.fixture
def ports(settings: Settings) -> Iterator[dict[int, int]]:
    """Start the services that machines reach through forwarded ports: the API, PostgreSQL and Redis."""
    database, port = settings.database_url.get_secret_value(), free_port()
    with redis("hosts-password") as broker:
        settings.broker_url = SecretStr(broker.url)
        environment = os.environ | {"TUNESMITH_BROKER_URL": broker.url, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "app", "--no-worker", "--port", str(port)]
        with subprocess.Popen(command, env=environment, cwd=settings.data_dir) as api:
            wait_until(lambda: is_healthy(port), 120, "the API is not ready")
            yield {
                API_PORT: port,
                DATABASE_PORT: urlsplit(database).port or 5432,
                BROKER_PORT: urlsplit(broker.url).port or 6379,
            }
            api.terminate()


def is_healthy(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(params=list(CloudName))
def site(
    request: pytest.FixtureRequest,
    settings: Settings,
    ports: dict[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """Return a cloud with a keeper whose times are short."""
    require_namespaces()
    for module in (keeper_context, launch, terminate):
        monkeypatch.setattr(module, "SETTLE_SECONDS", 3.0)
    settings.host_boot_seconds, settings.host_lost_seconds, settings.host_stop_seconds = 100.0, 40.0, 5.0
    settings.host_sweep_seconds, settings.heartbeat_seconds = 0.2, 0.5
    settings.host_unattended_seconds = 300.0
    settings.cloud_requirement = "tunesmith[trainer]==0.1.0"
    join = JOIN.format(root=ROOT, python=sys.executable)

    def prepare(machine: SandboxMachine) -> None:
        trainer = TRAINER_PYTHON.format(python=sys.executable)
        for name, text in (("join", join), ("stubs/nvidia-smi", NVIDIA_SMI), ("trainer-python", trainer)):
            machine.write(name, text)
            (machine.shared / name).chmod(0o755)

    cloud: Cloud
    stand_in: AwsFaultProxy | LambdaStandIn
    hall: MachineHall
    if request.param is CloudName.aws:
        proxy: AwsFaultProxy = request.getfixturevalue("aws_proxy")
        aws: AwsCloud = request.getfixturevalue("aws")
        cloud, stand_in, hall, kind = aws, proxy, AwsHall(proxy), "g5.xlarge"
    else:
        lambda_stand_in: LambdaStandIn = request.getfixturevalue("lambda_stand_in")
        lambda_cloud: LambdaCloud = request.getfixturevalue("lambda_cloud")
        cloud, stand_in, hall, kind = lambda_cloud, lambda_stand_in, LambdaHall(lambda_stand_in), "gpu_1x_a10"
    # The path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ts-"))
    room = MachineRoom(hall, folder, ports, prepare)
    found = Site(cloud, stand_in, room, settings, kind)
    found.start_keeper()
    try:
        yield found
    finally:
        room.close()
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_life_of_a_host_leaves_a_machine_billed(site: Site) -> None:
    for live in LIVES:
        started = time.monotonic()
        host_id, reason = live(site)
        host = site.wait_until_ended(host_id)
        seconds, n_billed = time.monotonic() - started, len(site.room.hall.billed())
        print(f"{site.cloud.name} {live.__name__}: {host.stop_reason}, {seconds:.0f} s, billed {n_billed}")
        assert host.stop_reason is reason
        assert all(machine.is_off for machine in site.room.machines.values())
    assert site.room.hall.billed() == set()
    assert len(site.room.machines) == len(LIVES)
