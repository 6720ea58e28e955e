"""Installations of the service: embedded (SQLite, files) and team (PostgreSQL, Redis, several processes)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from tests import services
from tests.chaos import files
from tests.chaos.process import ROLES, ManagedProcess, UnexpectedExit, find_processes, send

LEASE_SECONDS = 6.0
DISK_MEBIBYTES = 256
N_APIS, N_WORKERS = 2, 3
POSTGRES_OPTIONS = ("-c", "max_connections=60")
SETTINGS = {
    "TUNESMITH_LEASE_SECONDS": str(LEASE_SECONDS),
    "TUNESMITH_HEARTBEAT_SECONDS": "1",
    "TUNESMITH_SWEEP_SECONDS": "1",
    "TUNESMITH_RENOTIFY_SECONDS": "2",
    "TUNESMITH_STOP_GRACE_SECONDS": "3",
    "TUNESMITH_PAUSE_GRACE_SECONDS": "5",
    # The trainer's Python is a script, which cannot be a fork server.
    "TUNESMITH_WARM_START": "false",
    # A run fails after too many failures without a checkpoint. With a fault every few seconds, that limit
    # would hide whether the run can continue.
    "TUNESMITH_MAX_FAILURES": "1000000",
    "HF_HUB_OFFLINE": "1",
}
SUPERVISE_SECONDS = 0.2
WATCH_SECONDS = 0.1
# A guard that does not run for so long may end its program too late.
MIN_STALL_SECONDS = 1.0


class PlatformName(StrEnum):
    """The kinds of installation."""

    embedded = "embedded"
    team = "team"


@dataclass(frozen=True)
class Suspension:
    """A time during which no guard could stop some programs, because they or their guards were suspended."""

    pids: frozenset[int]
    started: float
    ended: float
    is_of_host: bool = False
    """Whether the host stopped all processes, as a virtual machine without a processor."""


@dataclass
class Platform:
    """One installation whose processes are supervised."""

    name: PlatformName
    folder: Path
    environment: dict[str, str]
    data_dir: Path
    """The data directory of the API."""
    store: Path
    """The folder of the artifact store."""
    apis: list[ManagedProcess] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    workers: list[ManagedProcess] = field(default_factory=list)
    """Workers with a supervisor of their own; an embedded installation's worker is a child of its API."""
    postgres: services.PostgresServer | None = None
    redis: services.RedisServer | None = None
    has_small_disk: bool = False
    """Whether the data directory is a small file system of its own."""
    suspensions: list[Suspension] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def ledger(self) -> Path:
        """The ledger of the stand-in program."""
        return self.folder / "ledger.jsonl"

    @property
    def managed(self) -> list[ManagedProcess]:
        """All supervised processes."""
        return [*self.apis, *self.workers]

    @property
    def unexpected_exits(self) -> list[UnexpectedExit]:
        """The processes that have ended by themselves."""
        return [end for process in self.managed for end in process.unexpected_exits]

    def add_api(self, *arguments: str) -> None:
        """Add an API on a free port."""
        port = services.free_port()
        self.urls.append(f"http://127.0.0.1:{port}")
        name = f"api-{len(self.apis) + 1}"
        command = ["-m", "app", "--port", str(port), *arguments]
        self.apis.append(ManagedProcess(name, command, self.environment, self.folder / f"{name}.log"))

    def add_worker(self) -> None:
        """Add a worker with a data directory of its own, as on a host of its own."""
        name = f"worker-{len(self.workers) + 1}"
        environment = {**self.environment, "TUNESMITH_DATA_DIR": str(self.folder / name)}
        command = ["-m", "workers", "--queue", "cpu", "--name", name]
        self.workers.append(ManagedProcess(name, command, environment, self.folder / f"{name}.log"))

    def start(self) -> None:
        """Start all processes, and the thread that supervises them."""
        for process in self.managed:
            process.start()
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()
        threading.Thread(target=self._watch_host, name="host watch", daemon=True).start()

    def stop(self) -> None:
        """Kill all processes, and those that they have left behind."""
        self._stopping.set()
        for process in self.managed:
            process.kill()
        for role in ROLES:
            for left in self.find(role):
                send(left.pid, signal.SIGKILL)

    def find(self, role: str) -> list[psutil.Process]:
        """Return the processes that are a `worker`, `guard` or `program` now, orphans included."""
        return find_processes(role, str(self.folder))

    def find_managed(self, pid: int) -> ManagedProcess | None:
        """Return the supervised process with this id; None for a child of one."""
        return next((process for process in self.managed if process.pid == pid), None)

    def _supervise(self) -> None:
        while not self._stopping.wait(SUPERVISE_SECONDS):
            for process in self.managed:
                process.restart_if_ended()

    def _watch_host(self) -> None:
        """Record the times during which this thread did not run either."""
        last = time.monotonic()
        while not self._stopping.wait(WATCH_SECONDS):
            now = time.monotonic()
            if now - last > MIN_STALL_SECONDS:
                self.suspensions.append(Suspension(frozenset(), last, now, is_of_host=True))
            last = now


def can_mount() -> bool:
    """Return whether this process may mount file systems: root may not in every container."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(prefix="tunesmith-mount-") as folder:
        probe = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder]
        if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            return False
        subprocess.run(["umount", "-l", folder], check=True)
    return True


@contextmanager
def create_platform(name: PlatformName, folder: Path) -> Iterator[Platform]:
    """Create an installation in an empty folder and start it; stop it when the block ends."""
    with ExitStack() as stack:
        create = _create_embedded if name is PlatformName.embedded else _create_team
        platform = create(stack, folder)
        files.write_interpreter(folder / "python", platform.ledger)
        files.write_base(folder / "models" / "base")
        stack.callback(platform.stop)
        platform.start()
        yield platform


def _create_embedded(stack: ExitStack, folder: Path) -> Platform:
    """Create an installation as `python -m app` runs it."""
    data_dir = folder / "data"
    data_dir.mkdir()
    has_small_disk = can_mount()
    if has_small_disk:
        stack.enter_context(mounted(data_dir, f"size={DISK_MEBIBYTES}m"))
    environment = _build_environment(folder, data_dir)
    platform = Platform(PlatformName.embedded, folder, environment, data_dir, data_dir / "artifacts")
    platform.has_small_disk = has_small_disk
    platform.add_api()
    return platform


def _create_team(stack: ExitStack, folder: Path) -> Platform:
    """Create an installation of several APIs and workers on PostgreSQL and Redis."""
    postgres = stack.enter_context(services.postgres(*POSTGRES_OPTIONS))
    redis = stack.enter_context(services.redis("secret"))
    store = folder / "store"
    store.mkdir()
    environment = _build_environment(folder, folder / "data") | {
        "TUNESMITH_DATABASE_URL": postgres.url,
        "TUNESMITH_BROKER_URL": redis.url,
        "TUNESMITH_ARTIFACTS_URL": f"file://{store}",
    }
    subprocess.run([sys.executable, "-m", "app", "migrate"], check=True, env=environment, cwd=files.ROOT)
    platform = Platform(PlatformName.team, folder, environment, folder / "data", store)
    platform.postgres, platform.redis = postgres, redis
    for _ in range(N_APIS):
        platform.add_api("--no-worker")
    for _ in range(N_WORKERS):
        platform.add_worker()
    return platform


def _build_environment(folder: Path, data_dir: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
    return {
        **inherited,
        **SETTINGS,
        "TUNESMITH_DATA_DIR": str(data_dir),
        "TUNESMITH_MODEL_ROOTS": json.dumps([str(folder / "models")]),
        "TUNESMITH_TRAINER_PYTHON": str(folder / "python"),
    }


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory on the folder until the block ends; only root can."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
