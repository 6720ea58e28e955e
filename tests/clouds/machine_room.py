"""The machines of both stand-ins as sandboxes, which boot with their user data."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from tests.clouds.aws_fault_proxy import AwsFaultProxy
from tests.clouds.lambda_stand_in import LambdaStandIn
from tests.clouds.machine import SandboxMachine

# A minute of the dead man's timer: a busy machine needs a minute of ours to join.
TICK_SECONDS = 8.0


class MachineHall(Protocol):
    """A cloud as its machines see it."""

    def launched(self) -> dict[str, str]:
        """Return the user data of each machine."""
        ...

    def boot(self, machine_id: str) -> None:
        """Report a machine as running."""
        ...

    def shut_down(self, machine_id: str) -> None:
        """Do what the cloud does with a machine that has shut itself down."""
        ...

    def billed(self) -> set[str]:
        """Return the machines that cost money."""
        ...


class AwsHall:
    """AWS: a machine that shuts itself down is terminated."""

    def __init__(self, proxy: AwsFaultProxy) -> None:
        self._proxy = proxy

    def launched(self) -> dict[str, str]:
        return {
            machine_id: base64.b64decode(form["UserData"]).decode()
            for machine_id, form in self._proxy.launched_by_id.items()
        }

    def boot(self, machine_id: str) -> None:
        """Do nothing: a machine of moto runs at once."""

    def shut_down(self, machine_id: str) -> None:
        self._proxy.shut_down(machine_id)

    def billed(self) -> set[str]:
        states = self._proxy.states()
        return {id for id in self._proxy.launched_by_id if states.get(id, "terminated") != "terminated"}


class LambdaHall:
    """Lambda: a machine that shuts itself down is unhealthy, and billed."""

    def __init__(self, stand_in: LambdaStandIn) -> None:
        self._stand_in = stand_in

    def launched(self) -> dict[str, str]:
        return dict(
            zip(self._stand_in.instances, (b["user_data"] for b in self._stand_in.launches), strict=True)
        )

    def boot(self, machine_id: str) -> None:
        self._stand_in.boot(machine_id)

    def shut_down(self, machine_id: str) -> None:
        if machine_id in self._stand_in.billed():
            self._stand_in.instances[machine_id]["status"] = "unhealthy"

    def billed(self) -> set[str]:
        return set(self._stand_in.billed())


class MachineRoom:
    """The sandboxes of a cloud's machines."""

    def __init__(
        self,
        hall: MachineHall,
        folder: Path,
        ports: dict[int, int],
        prepare: Callable[[SandboxMachine], None],
    ) -> None:
        self.hall = hall
        self.machines: dict[str, SandboxMachine] = {}
        self.has_cuda = True
        self._folder, self._ports, self._prepare = folder, ports, prepare
        self._tunneled: set[str] = set()

    def step(self) -> None:
        """Start machines that were launched, and end those that the cloud has ended."""
        for machine_id, user_data in self.hall.launched().items():
            if machine_id not in self.machines:
                machine = SandboxMachine(
                    self._folder / str(len(self.machines)),
                    user_data,
                    tick_seconds=TICK_SECONDS,
                    has_cuda=self.has_cuda,
                )
                self._prepare(machine)
                machine.start(self._ports)
                self.machines[machine_id] = machine
                self.hall.boot(machine_id)
        billed = self.hall.billed()
        for machine_id, machine in self.machines.items():
            if machine.is_off and machine_id in billed:
                self.hall.shut_down(machine_id)
            elif not machine.is_off and machine_id not in billed:
                machine.kill()

    def open_tunnel(self, machine_id: str) -> None:
        """Open the tunnel of a machine once."""
        if machine_id in self.machines and machine_id not in self._tunneled:
            self._tunneled.add(machine_id)
            self.machines[machine_id].open_tunnel()

    def close(self) -> None:
        """End all machines."""
        for machine in self.machines.values():
            machine.kill()


def find_workers(machine: SandboxMachine) -> list[psutil.Process]:
    """Return the processes of a machine's worker."""
    if machine.is_off:
        return []
    processes = psutil.Process(machine.pid).children(recursive=True)
    return [process for process in processes if "-m workers --env-file" in " ".join(_command_of(process))]


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
