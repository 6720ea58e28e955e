"""Goal: a warm start differs from a cold one in nothing but time, and programs share nothing.

Method: the same module is started both ways, and records everything that a process inherits.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.settings import Settings
from serving.engines import EngineConfig, find_engine
from tests.conftest import OFFLINE, ROOT
from tests.integration.workers.test_containment import wait_until
from trainers.configs import EngineKind
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import program_environment, row_cache_environment
from workers.hosts.guard_options import EXIT_SIGNAL_BASE
from workers.hosts.guarded_process import NO_LIMITS, GuardedProcess, start_guarded_process
from workers.hosts.resource_limits import ResourceLimits
from workers.hosts.warm_start import ForkServer, create_fork_server

ENGINE = EngineConfig("model", "model", "127.0.0.1", 1)
ENVIRONMENT = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
RECORD = """
import json, os, resource, signal, sys
from pathlib import Path

def read_environment(process):
    return dict(item.split("=", 1) for item in Path(f"/proc/{process}/environ").read_text().split("\\0")[:-1])

def list_files():
    for descriptor in os.listdir("/proc/self/fd"):
        if descriptor not in "012" and os.path.exists(f"/proc/self/fd/{descriptor}"):
            yield os.readlink(f"/proc/self/fd/{descriptor}")

own, guard = read_environment("self"), read_environment(os.getppid())
assert os.environ["TUNESMITH_PROGRAM"] == own["TUNESMITH_PROGRAM"] == guard["TUNESMITH_PROGRAM"]
limits = [name for name in dir(resource) if name.startswith("RLIMIT")]
handled = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
print(json.dumps({
    "variables": {name: value for name, value in os.environ.items() if name != "TUNESMITH_PROGRAM"},
    # Python adds LC_CTYPE to its own environment where a locale is missing.
    "variables that the kernel shows": sorted(set(own) - {"LC_CTYPE", "TUNESMITH_OF_THE_RUN"}),
    "arguments": sys.argv, "path": sys.path, "folder": os.getcwd(), "umask": os.umask(0),
    "module": [sys.modules["__main__"].__spec__.name, __name__, sys.executable],
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
    "signals": {number.name: str(signal.getsignal(number)) for number in handled},
    "blocked": list(signal.pthread_sigmask(0, [])), "nice": os.nice(0),
    "process group and session": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getppid()],
    "standard input": os.readlink("/proc/self/fd/0"), "other files": sorted(list_files()),
}))
"""
LEAVE_TRACES = """
import os, sys
assert not hasattr(sys, "left") and "LEFT" not in os.environ
sys.left = os.environ["LEFT"] = "1"
os.chdir("/")
"""
STOP_WITH_75 = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print(1, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer(sys.executable, ENVIRONMENT, modules=())
    server.start()
    wait_until(lambda: server.is_ready)
    yield server
    server.stop()


def start(
    folder: Path,
    program: str,
    server: ForkServer | None,
    *,
    environment: dict[str, str] | None = None,
    limits: ResourceLimits = NO_LIMITS,
) -> GuardedProcess:
    (folder / "program.py").write_text(program)
    return start_guarded_process(
        [sys.executable, "-m", "program", "--option", "value"],
        log=folder / "log",
        environment=environment or ENVIRONMENT,
        seconds=60,
        folder=folder,
        limits=limits,
        fork_server=server,
    )


def is_warm(program: GuardedProcess) -> bool:
    return bool(psutil.Process(program.pid).ppid() != os.getpid())


def run_record(folder: Path, server: ForkServer | None) -> Any:
    (folder / "log").unlink(missing_ok=True)
    program = start(folder, RECORD, server, environment=ENVIRONMENT | {"TUNESMITH_OF_THE_RUN": "1"})
    assert is_warm(program) == (server is not None)
    assert program.wait(60) == 0, (folder / "log").read_text()
    return json.loads((folder / "log").read_text())


def test_a_warm_program_inherits_what_a_cold_one_does(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret of the worker")
    cold, warm = run_record(tmp_path, None), run_record(tmp_path, server)
    assert "HF_TOKEN" not in cold["variables"]
    assert warm == cold


def test_the_programs_of_a_worker_start_warm(settings: Settings) -> None:
    server = create_fork_server(settings.model_copy(update={"warm_start": True}))
    assert server is not None
    environment = program_environment(NO_DEVICES)
    assert server.accepts(environment)
    assert server.accepts(environment | row_cache_environment(settings))
    assert server.accepts(environment | find_engine(EngineKind.hf).environment(ENGINE))


def test_nothing_passes_from_one_program_to_the_next(server: ForkServer, tmp_path: Path) -> None:
    for _ in range(2):
        assert start(tmp_path, LEAVE_TRACES, server).wait(60) == 0


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('a reason')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(75)", 75),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", EXIT_SIGNAL_BASE + signal.SIGSEGV),
    ],
)
def test_the_worker_receives_the_exit_status(
    server: ForkServer, tmp_path: Path, program: str, status: int
) -> None:
    assert start(tmp_path, program, server).wait(60) == status


def test_a_warm_program_can_stop_in_its_own_way(server: ForkServer, tmp_path: Path) -> None:
    child = start(tmp_path, STOP_WITH_75, server)
    wait_until(lambda: bool((tmp_path / "log").read_text()))
    child.stop()
    assert child.wait(60) == 75


@pytest.mark.parametrize("limit", ["max_memory_bytes", "max_seconds"])
def test_a_warm_program_has_the_same_limits(server: ForkServer, tmp_path: Path, limit: str) -> None:
    limits = ResourceLimits(**{limit: 1}, folder=str(tmp_path))
    child = start(tmp_path, "import time; time.sleep(60)", server, limits=limits)
    assert child.wait(60) == EXIT_SIGNAL_BASE + (signal.SIGKILL if "memory" in limit else signal.SIGTERM)
    assert child.exceeded_limit is not None
    assert child.exceeded_limit.limit == limit


def test_other_variables_or_a_gpu_mean_a_cold_start(server: ForkServer, tmp_path: Path) -> None:
    for variables in ({"HF_HUB_OFFLINE": "0"}, {"CUDA_VISIBLE_DEVICES": "0"}, {"OMP_NUM_THREADS": "7"}):
        child = start(tmp_path, "", server, environment=ENVIRONMENT | variables)
        assert not is_warm(child)
        assert child.wait(60) == 0


def test_a_server_that_was_killed_costs_a_cold_start_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.hosts.warm_start.RESTART_SECONDS", 0)
    server = ForkServer(sys.executable, ENVIRONMENT, modules=())
    server.start()
    wait_until(lambda: server.is_ready)
    first = start(tmp_path, "import time; time.sleep(60)", server)
    assert is_warm(first)
    os.kill(psutil.Process(first.pid).ppid(), signal.SIGKILL)
    assert first.wait(0.2) is None, "a program ends with its lease or its worker, not with the server"
    second = start(tmp_path, "", server)
    assert not is_warm(second)
    assert second.wait(60) == 0
    wait_until(lambda: server.is_ready)
    third = start(tmp_path, "", server)
    assert third.wait(60) == 0
    first.kill()
    server.stop()


def test_a_server_that_cannot_be_started_costs_a_cold_start(tmp_path: Path) -> None:
    server = ForkServer("/no/such/python", ENVIRONMENT)
    server.start()
    child = start(tmp_path, "", server)
    assert not is_warm(child)
    assert child.wait(60) == 0


def test_a_suspended_server_costs_a_cold_start_and_never_starts_the_program_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that is not suspended responds within this time, on a busy machine too.
    monkeypatch.setattr("workers.hosts.warm_start.RESPONSE_SECONDS", 3)
    server = ForkServer(sys.executable, ENVIRONMENT, modules=())
    server.start()
    wait_until(lambda: server.is_ready)
    probe = start(tmp_path, "", server)
    assert is_warm(probe), "the process to suspend would be this one"
    process = psutil.Process(probe.pid).parent()
    assert process is not None
    assert probe.wait(60) == 0
    process.suspend()
    count = "from pathlib import Path; Path('count').open('a').write('1')"
    assert start(tmp_path, count, server).wait(60) == 0
    wait_until(lambda: not process.is_running())
    time.sleep(0.2)
    assert (tmp_path / "count").read_text() == "1"
    server.stop()


def test_the_server_ends_with_its_worker(tmp_path: Path) -> None:
    worker = (
        "import sys, os, time\n"
        "from workers.hosts.warm_start import ForkServer\n"
        "server = ForkServer(sys.executable, dict(os.environ), modules=())\n"
        "server.start()\n"
        "print(server._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        pid = int(output.readline())
    process.kill()
    process.wait()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_warm_run_trains_to_the_same_losses(starter: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **OFFLINE}
    server = ForkServer(sys.executable, environment, modules=["trainers.sft"])
    server.start()
    wait_until(lambda: server.is_ready)
    rows = [dict(row) for row in generate_problems(32, ProblemSplit.train, seed=1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for name, fork_server in (("cold", None), ("warm", server)):
        run_dir = tmp_path / name
        run_dir.mkdir()
        config: dict[str, Any] = {"stage": "sft", "base": str(starter)}
        config |= {
            "dataset": str(tmp_path / "rows.jsonl"),
            "max_steps": 4,
            "log_every_steps": 1,
            "tuning": {"method": "lora", "dropout": 0.1},
        }
        (run_dir / "config.json").write_text(json.dumps(config))
        options = ["--config", str(run_dir / "config.json"), "--run-dir", str(run_dir)]
        command = [sys.executable, "-m", "trainers.sft", *options]
        log = run_dir / "log"
        child = start_guarded_process(
            command, log=log, environment=environment, seconds=240, folder=ROOT, fork_server=fork_server
        )
        assert is_warm(child) == (name == "warm")
        assert child.wait(240) == 0, log.read_text()
        lines = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
        losses.append([line["values"]["loss"] for line in lines if line["type"] == "metrics"])
    server.stop()
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
