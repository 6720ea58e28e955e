"""A cloud with its machines and the keeper of its hosts, for the lives of hosts."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.hosts import lifecycle
from app.settings import Settings
from app.storage.database import database_now, read_session, transaction
from app.tables import Host, HostStatus, StopReason
from tests.clouds.aws_fault_proxy import AwsFaultProxy
from tests.clouds.lambda_stand_in import LambdaStandIn
from tests.clouds.machine import SandboxMachine
from tests.clouds.machine_room import MachineRoom
from workers.cloud_hosts.context import KeeperContext
from workers.cloud_hosts.keeper import CloudSweepFailed, HostKeeper
from workers.clouds.clients import make_user_data
from workers.clouds.protocol import Cloud

API_PORT, DATABASE_PORT, BROKER_PORT = 18000, 15432, 16379
NVIDIA_SMI = """#!/bin/bash
gpu="0, GPU-11111111-1111-1111-1111-111111111111, 24576, [N/A], NVIDIA A10G"
case "$*" in *query-gpu*) echo "$gpu" ;; esac
"""
# The interpreter of the trainers, whose torch counts one GPU for `workers doctor`.
TRAINER_PYTHON = """#!/bin/bash
case "$*" in *device_count*) echo 1; exit ;; esac
exec {python} "$@"
"""
# `workers join` of the package, on a machine whose systemd is a stub and whose trainers are these.
JOIN = """#!/bin/bash
folder=/etc/systemd/system/tunesmith-worker.service.d
mkdir -p /run/systemd/system $folder
cat > $folder/test.conf <<UNIT
[Service]
Environment=TUNESMITH_TRAINER_PYTHON=/machine/trainer-python
Environment=TUNESMITH_WARM_START=false
Environment=TUNESMITH_HEARTBEAT_SECONDS=0.5
Environment=TUNESMITH_LEASE_SECONDS=4
Environment=OMP_NUM_THREADS=1
UNIT
# The interpreter of the tests may be one that only root can execute.
cd {root} && exec {python} "${{@/#tunesmith/root}}"
"""


@dataclass
class Site:
    """A cloud with its machines and its keeper."""

    cloud: Cloud
    stand_in: AwsFaultProxy | LambdaStandIn
    room: MachineRoom
    settings: Settings
    type: str
    has_tunnels: bool = True
    keeper: HostKeeper | None = None

    def keep(self, hosts: Sequence[Host]) -> None:
        """Open the tunnels of machines, as the keeper asks."""
        for host in hosts:
            if self.has_tunnels and host.machine_id is not None:
                self.room.open_tunnel(host.machine_id)

    def make_user_data(self, host: Host, secret: str) -> str:
        return make_user_data(
            self.settings,
            os.environ,
            cloud=host.cloud,
            host_id=host.id,
            join_key=secret,
            spot=host.spot,
            tunnel=None,
            api_port=API_PORT,
        )

    def start_keeper(self) -> None:
        context = KeeperContext(self.cloud, "team", self.settings, self, self.make_user_data)
        self.keeper = HostKeeper(context, f"worker_{time.time_ns()}")

    def create_host(self, **values: Any) -> str:
        """Insert the row of a host, as POST does."""
        fields: dict[str, Any] = {"cloud": self.cloud.name, "type": self.type, "region": "us-east-1"}
        fields |= {"usd_per_hour": 1.0, "max_usd": 10.0, "idle_seconds": 3600.0} | values
        host = Host(**fields)
        with transaction() as session:
            session.add(host)
        return host.id

    def run_until(self, condition: Callable[[], object], what: str, seconds: float = 400.0) -> None:
        """Let the keeper sweep and the machines live until a fact holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            shown = "\n".join(machine.read("console")[-600:] for machine in self.room.machines.values())
            assert time.monotonic() < deadline, f"{what}: {shown}"
            if self.keeper is not None:
                try:
                    self.keeper.sweep()
                except CloudSweepFailed as error:
                    print(f"  sweep: {error}")
            self.room.step()
            time.sleep(0.2)

    def machine_of(self, host_id: str) -> SandboxMachine:
        machine_id = get_host(host_id).machine_id
        assert machine_id is not None
        return self.room.machines[machine_id]

    def wait_until_ready(self, host_id: str) -> None:
        self.run_until(lambda: get_host(host_id).status is HostStatus.ready, "ready")

    def wait_until_ended(self, host_id: str) -> Host:
        self.run_until(lambda: get_host(host_id).status.finished and not self.room.hall.billed(), "ended")
        return get_host(host_id)


def get_host(host_id: str) -> Host:
    with read_session() as session:
        return session.get_one(Host, host_id)


def request_end(host_id: str) -> None:
    """Decide the end of a host, as DELETE does."""
    values = {"stop_at": database_now(), "stop_reason": StopReason.requested}
    with transaction() as session:
        assert lifecycle.move(session, host_id, HostStatus.terminating, values=values) is not None
