"""Goal: whatever ends a program, and whatever dies with it, none of its processes stays.

Method: a program whose processes are in sessions of their own; the tests count processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.engines.child_engine import run_engine
from serving.engines.engine import EngineConfig
from serving.engines.hf.engine import HfEngine
from tests.conftest import ROOT
from tests.integration.workers.family import N_PROCESSES, family_command
from trainers.runtime.process_tree import MARKER
from workers.hosts import guarded_process
from workers.hosts.guard_options import EXIT_SIGNAL_BASE
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.hosts.warm_start import ForkServer

# Starts the program as a worker does, and prints the guard's process id. The last lease is a short one.
WORKER = """
import os, sys, time
from pathlib import Path
from workers.hosts.guarded_process import start_guarded_process
from workers.hosts.warm_start import ForkServer
log, warm, *command = sys.argv[1:]
fork_server = None
if warm == "warm":
    fork_server = ForkServer(sys.executable, os.environ, modules=())
    fork_server.start()
    while not fork_server.is_ready:
        time.sleep(0.05)
program = start_guarded_process(
    command, log=Path(log), environment=os.environ, seconds=120, fork_server=fork_server
)
print(program.pid, flush=True)
while not Path(log).with_name("shorten").exists():
    time.sleep(0.05)
program.extend(1)
Path(log).with_name("shortened").touch()
time.sleep(120)
"""


ENVIRONMENT = dict(os.environ)  # Pytest changes its own with each test.


class Family:
    """The processes of one program, by the files that they write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def pids(self, role: str = "") -> list[int]:
        """Wait until every process has started, and return the ids of those with this role."""
        wait_until(lambda: len(list(self.folder.iterdir())) == N_PROCESSES)
        return [int(file.name.split("-")[0]) for file in self.folder.iterdir() if file.name.endswith(role)]

    def count(self) -> int:
        """Return how many of the processes are running."""
        return sum(is_running(int(file.name.split("-")[0])) for file in self.folder.iterdir())


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


class Start(StrEnum):
    """How a program is started."""

    kernel = "kernel"
    macos = "as on macOS"
    warm = "warm"


def start(family: Family, how: Start) -> GuardedProcess:
    program = start_guarded_process(
        family_command(family.folder),
        log=family.folder.with_name("log"),
        environment=ENVIRONMENT,
        seconds=60,
        use_kernel=how is not Start.macos,
        fork_server=fork_server() if how is Start.warm else None,
    )
    assert (psutil.Process(program.pid).ppid() == os.getpid()) == (how is not Start.warm)
    return program


@cache
def fork_server() -> ForkServer:
    server = ForkServer(sys.executable, ENVIRONMENT, modules=())
    server.start()
    wait_until(lambda: server.is_ready)
    return server


@pytest.fixture(scope="module", autouse=True)
def _stop_fork_server() -> Iterator[None]:
    yield
    fork_server().stop()


def start_worker(family: Family, how: Start, *, bound: bool = False) -> tuple[subprocess.Popen[str], int]:
    """Start a worker with the program; return it with the id of its guard."""
    command = family_command(family.folder, bound=bound)
    log = str(family.folder.with_name("log"))
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, log, how, *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert worker.stdout is not None
    with worker.stdout as output:
        guard = int(output.readline())
    assert (psutil.Process(guard).ppid() == worker.pid) == (how is not Start.warm)
    return worker, guard


class FamilyEngine(HfEngine):
    """An engine that ignores SIGTERM and has workers in sessions of their own."""

    stop_seconds = 0.2

    def __init__(self, family: Family) -> None:
        super().__init__(family_command(family.folder))
        self.family = family

    def command(self, config: EngineConfig) -> list[str]:
        return self.program

    def is_healthy(self, address: str) -> bool:
        return len(self.family.pids()) == N_PROCESSES

    def probe(self, address: str, name: str, timeout_seconds: float = 60, task: Any = None) -> None:
        pass


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path / "pids")


@pytest.fixture(params=Start)
def how(request: pytest.FixtureRequest) -> Start:
    return Start(request.param)


@pytest.fixture(params=[Start.kernel, Start.warm])
def how_on_linux(request: pytest.FixtureRequest) -> Start:
    return Start(request.param)


def test_kill_ends_processes_in_other_sessions(family: Family, how: Start) -> None:
    program = start(family, how)
    assert len(family.pids()) == N_PROCESSES
    program.stop()
    assert program.wait(0.5) is None
    program.kill()
    assert family.count() == 0


def test_the_end_of_a_lease_ends_every_process(family: Family, how: Start) -> None:
    program = start(family, how)
    family.pids()
    program.extend(0.1)
    assert program.wait(60) == EXIT_SIGNAL_BASE + signal.SIGKILL
    assert family.count() == 0


def test_no_process_stays_when_the_program_itself_has_died(family: Family, how: Start) -> None:
    program = start(family, how)
    (launcher,) = family.pids("launcher")
    os.kill(launcher, signal.SIGKILL)
    assert program.wait(60) == EXIT_SIGNAL_BASE + signal.SIGKILL
    assert family.count() == 0


def test_no_process_stays_when_the_guard_is_killed(family: Family, how: Start) -> None:
    program = start(family, how)
    family.pids()
    os.kill(program.pid, signal.SIGKILL)
    assert program.wait(60) == -signal.SIGKILL
    assert family.count() == 0


def test_a_guard_that_is_asked_to_end_ends_every_process(family: Family, how: Start) -> None:
    program = start(family, how)
    family.pids()
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait(60) == EXIT_SIGNAL_BASE + signal.SIGTERM
    assert family.count() == 0


def test_a_suspended_guard_does_not_protect_its_program(
    family: Family, how: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_process, "GUARD_SECONDS", 0.2)
    program = start(family, how)
    family.pids()
    os.kill(program.pid, signal.SIGSTOP)
    program.kill()
    assert family.count() == 0


def test_no_process_stays_when_the_worker_is_killed(family: Family, how_on_linux: Start) -> None:
    worker, _ = start_worker(family, how_on_linux)
    family.pids()
    worker.kill()
    worker.wait()
    wait_until(lambda: family.count() == 0)


def test_no_process_stays_when_the_worker_is_suspended_past_its_lease(
    family: Family, how_on_linux: Start
) -> None:
    worker, _ = start_worker(family, how_on_linux)
    family.pids()
    family.folder.with_name("shorten").touch()
    wait_until(family.folder.with_name("shortened").exists)
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: family.count() == 0)
    worker.kill()
    worker.wait()


def test_processes_die_with_their_parents_when_worker_and_guard_are_killed(
    family: Family, how_on_linux: Start
) -> None:
    worker, guard = start_worker(family, how_on_linux, bound=True)
    family.pids()
    os.kill(guard, signal.SIGSTOP)
    worker.kill()
    os.kill(guard, signal.SIGKILL)
    worker.wait()
    wait_until(lambda: family.count() == 0)


def test_what_a_killed_worker_and_its_suspended_guard_have_left_ends_before_the_next_start(
    family: Family, tmp_path: Path, how_on_linux: Start
) -> None:
    worker, guard = start_worker(family, how_on_linux)
    family.pids()
    os.kill(guard, signal.SIGSTOP)
    # From its end on, any other test that starts a program ends them, too.
    assert family.count() == N_PROCESSES
    worker.kill()
    worker.wait()
    command = [sys.executable, "-c", ""]
    start_guarded_process(command, log=tmp_path / "next", environment=os.environ, seconds=60).wait(60)
    assert family.count() == 0
    assert not is_running(guard)


def test_an_engine_by_hand_ends_with_its_workers(family: Family, tmp_path: Path) -> None:
    config = EngineConfig("model", "model", "127.0.0.1", 1)
    with run_engine(FamilyEngine(family), config, tmp_path / "log"):
        assert family.count() == N_PROCESSES
    assert family.count() == 0


def test_a_program_that_forges_the_marker_of_its_child_stops_no_start(tmp_path: Path) -> None:
    namespace = str(Path("/proc/self/ns/pid").readlink())
    forger = subprocess.Popen(["sleep", "60"], env={MARKER: f"{namespace}/no pid/x"})
    program = start_guarded_process(
        [sys.executable, "-c", ""], log=tmp_path / "log", environment=os.environ, seconds=60
    )
    assert program.wait(60) == 0
    forger.kill()
    forger.wait()


@pytest.mark.parametrize("use_kernel", [True, False])
def test_a_process_whose_parent_died_before_it_could_ask_ends_at_once(use_kernel: bool) -> None:
    orphan = (
        "import os, subprocess, sys\n"
        "from trainers.runtime.process_tree import die_with_parent\n"
        f"die_with_parent(use_kernel={use_kernel})\n"
        "print('alive')"
    )
    environment = os.environ | {MARKER: "a/1/b"}
    # This process, the parent, lacks the marker: it is not the one that the marker's owner started.
    ended = subprocess.run([sys.executable, "-c", orphan], env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"")


def test_a_process_without_help_of_the_kernel_notices_the_end_of_its_parent(tmp_path: Path) -> None:
    child = (
        "import os, pathlib, time\n"
        "from trainers.runtime.process_tree import die_with_parent\n"
        "die_with_parent(use_kernel=False)\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "time.sleep(120)"
    )
    start_child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    environment = os.environ | {MARKER: "a/1/b"}
    parent = subprocess.Popen([sys.executable, "-c", start_child], env=environment)
    wait_until(lambda: list(tmp_path.iterdir()) != [])
    (pid,) = (int(file.name) for file in tmp_path.iterdir())
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(pid))
