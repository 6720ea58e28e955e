"""User data on a machine.

Goal: a machine becomes a host, or it ends by itself. Method: the real program as root in namespaces with a
root and a network of their own; what would change a machine is a stub that records its call.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clouds.http_stand_in import HttpStandIn
from tests.clouds.machine import SandboxMachine, require_namespaces
from workers.clouds.user_data import HostSetup, TunnelAccess

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1Kq0P1uYt1sV1o0Vb3mYk9y8vF3pWq4Z5xX2cN7hTe"
SETUP = HostSetup(
    host_id="host_1",
    join_key="ts_0123456789abcdef",
    requirement="tunesmith[trainer]==1.2",
    ssh_user="root",
    tunnel=TunnelAccess(KEY, (8000,)),
    boot_minutes=10,
    lease_minutes=5,
    poll_seconds=1,
)


class Health(HttpStandIn):
    """An API that is alive."""

    def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        return (200 if path == "/healthz" else 404), {}, b"{}"


@pytest.fixture(scope="module")
def api() -> Iterator[int]:
    with Health() as server:
        yield int(server.url.rpartition(":")[2])


def wait_for(condition: Callable[[], object], machine: SandboxMachine, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (
            machine.read("console") + machine.read("boot.log") + machine.read("calls")
        )
        time.sleep(0.02)


def make_machine(folder: Path, *, ticks: float = 0.1, cuda: bool = True) -> SandboxMachine:
    require_namespaces()
    machine = SandboxMachine(folder / "machine", SETUP.render({}), tick_seconds=ticks, has_cuda=cuda)
    # The unit of the worker is written by `workers join`, whose part this plays.
    machine.write(
        "join",
        "#!/bin/bash\nprintf '[Service]\\nExecStart=/usr/bin/sleep 1000\\n' > "
        "/etc/systemd/system/tunesmith-worker.service\n",
    )
    (machine.shared / "join").chmod(0o755)
    return machine


def test_a_machine_becomes_a_host_in_the_order_that_ends_it_first(tmp_path: Path, api: int) -> None:
    with make_machine(tmp_path, ticks=60.0) as machine:
        machine.start({8000: api})
        wait_for(lambda: "waiting for the control plane" in machine.read("console"), machine)
        before = machine.calls()
        machine.open_tunnel()
        wait_for(lambda: "tunesmith: joined" in machine.read("console"), machine)
        calls = machine.calls()
    assert before == [
        "systemctl daemon-reload",
        "systemctl enable --now tunesmith-dead-man.timer",
        "systemctl reload ssh",
    ]
    assert calls[3:9] == [
        "apt-get update",
        "apt-get install -y --no-install-recommends python3-venv",
        "python3 -m venv /opt/tunesmith/bootstrap",
        "bootstrap-python -m pip install --quiet uv",
        "uv venv --allow-existing --python >=3.11 /opt/tunesmith/venv",
        "uv pip install --python /opt/tunesmith/venv/bin/python tunesmith[trainer]==1.2",
    ]
    where = "--url http://127.0.0.1:8000 --name host_1 --user tunesmith --data-dir /opt/tunesmith/data"
    join = f"python -m workers join {where}"
    assert calls[9:] == [join, "systemctl daemon-reload", "systemctl enable --now tunesmith-worker.service"]


def test_a_machine_that_never_reaches_the_control_plane_shuts_itself_down(tmp_path: Path, api: int) -> None:
    with make_machine(tmp_path) as machine:
        machine.start({8000: api})
        wait_for(lambda: machine.is_off, machine)
        assert machine.calls()[-1] == "shutdown -h now"
        assert "apt-get update" not in machine.calls()


def test_a_machine_lives_while_it_is_renewed_and_ends_soon_after(tmp_path: Path, api: int) -> None:
    # Its minutes pass once it has joined, each after a renewal, however slow this machine is.
    with make_machine(tmp_path, ticks=3600.0) as machine:
        machine.write("before_tick", "[ -e /machine/lost ] || touch /run/tunesmith/renewal/wanted\n")
        machine.start({8000: api})
        machine.open_tunnel()
        wait_for(lambda: "tunesmith: joined" in machine.read("console"), machine)
        machine.write("tick_seconds", "0.1")
        wait_for(
            lambda: machine.is_off or len(machine.read("ticks").split()) > 2 * SETUP.boot_minutes, machine
        )
        assert not machine.is_off
        machine.write("lost", "")
        wait_for(lambda: machine.is_off, machine)
        assert machine.calls()[-1] == "shutdown -h now"


def test_a_machine_whose_torch_finds_no_gpu_ends_before_it_joins(tmp_path: Path, api: int) -> None:
    with make_machine(tmp_path, ticks=60.0, cuda=False) as machine:
        machine.start({8000: api})
        machine.open_tunnel()
        wait_for(lambda: machine.is_off, machine)
        assert "failed: torch finds no GPU" in machine.read("console")
        assert "workers join" not in machine.read("calls")


def test_a_machine_without_the_dead_mans_timer_ends_at_once(tmp_path: Path, api: int) -> None:
    with make_machine(tmp_path) as machine:
        machine.write("broken_units", "tunesmith-dead-man.timer")
        machine.start({8000: api})
        wait_for(lambda: machine.is_off, machine)
        assert machine.calls()[1:] == ["systemctl enable --now tunesmith-dead-man.timer", "shutdown -h now"]


def test_nothing_of_a_machine_is_left_here(tmp_path: Path, api: int) -> None:
    with make_machine(tmp_path, ticks=60.0) as machine:
        machine.start({8000: api})
        machine.open_tunnel()
        wait_for(lambda: "tunesmith: joined" in machine.read("console"), machine)
    assert machine.is_off
    assert not Path("/opt/tunesmith").exists()
    assert not Path("/etc/systemd/system/tunesmith-worker.service").exists()
    assert "tunesmith" not in Path("/etc/passwd").read_text()
