"""The context of a worker: its row in the database, its hardware, and the state that its threads share."""

import logging
import os
import platform
import shutil
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from app.hosts.offers import capability_of
from app.scheduling.incidents import list_problems
from app.settings import Settings
from app.storage.database import database_now, transaction
from app.tables import Worker
from app.workers.gpus import Gpu
from app.workers.host_hardware import HostHardware, find_version, inspect_host
from serving.engines import ENGINES
from trainers.configs import EngineKind, Queue, StageKind
from trainers.configs.graders import PYTHON_GRADER, TEXT_SIMILARITY
from trainers.configs.stages.migration.fetch import OPENAI
from trainers.graders.sandbox import find_sandbox_fault
from workers.cloud_hosts.configured import find_clouds
from workers.healthcheck import write_heartbeat
from workers.hosts.devices import DevicePool, Devices
from workers.hosts.host_use import add_use
from workers.hosts.launched_host import HostRenewal, load_host
from workers.hosts.lease import Leases
from workers.hosts.warm_start import ForkServer, create_fork_server
from workers.inputs.store_gate import StoreGate
from workers.nodes.address import find_node_address
from workers.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

MAX_PROBLEMS = 10
# Of the environment of llama.cpp its interpreter and the converter; of COMET's its interpreter, and the file
# that `make comet` writes last.
GGUF_FILES = ("bin/python", "llama.cpp/convert_hf_to_gguf.py")
COMET_FILES = ("bin/python", "installed")
# Of the metrics of `text_similarity` that not every environment has.
SIMILARITY_PACKAGES = ("sacrebleu", "nltk", "rouge-score")
REPORTED_PACKAGES = ("tunesmith", "torch", "transformers", "trl", "peft", "mlx", "mlx-lm", "vllm", "celery")


@dataclass
class WorkerContext:
    """The state that the threads of one worker share."""

    worker_id: str
    settings: Settings
    queues: list[Queue]
    stages: list[StageKind]
    devices: DevicePool
    capabilities: list[str] = field(default_factory=list)
    job_id: str | None = None
    """The job for which alone the host was launched."""
    node_address: str | None = None
    """Address at which other hosts reach this one; None if it takes no part in runs on several."""
    registration: dict[str, Any] = field(default_factory=dict)
    """The columns of this worker's row, to insert it again if it was deleted while the host slept."""
    fork_server: ForkServer | None = field(init=False)
    leases: Leases = field(init=False)
    tracker: Tracker = field(init=False)
    stopping: threading.Event = field(default_factory=threading.Event)
    wake: threading.Event = field(default_factory=threading.Event)
    """Set when there may be a run to claim, or room for one."""
    store_gate: StoreGate = field(default_factory=StoreGate)
    _deployments_changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.fork_server = create_fork_server(self.settings)
        self.leases = Leases(self.settings.heartbeat_seconds, self.announce)
        self.tracker = Tracker(self.settings)
        self._renewal = HostRenewal(self.settings)

    def announce(self) -> None:
        """Write that this worker is alive, by the database's clock, and what fails in it."""
        values = {"last_seen_at": database_now(), "problems": list_problems()[:MAX_PROBLEMS]}
        if not _update(self.worker_id, **values) and self.registration:
            with transaction() as session:
                session.add(Worker(**self.registration))
            _update(self.worker_id, **values)
        if self.settings.heartbeat_file is not None:
            write_heartbeat(self.settings.heartbeat_file, self.settings.heartbeat_seconds)
        self._renewal.renew()

    def announce_use(self) -> None:
        """Write what is in use of this host's GPUs and free on its disk into the worker's row."""
        hardware = add_use(self.registration["hardware"], self.settings.data_dir)
        self.registration["hardware"] = hardware
        _update(self.worker_id, hardware=hardware)

    def announce_report(self, report: dict[str, Any]) -> None:
        """Write the checks of this host into the worker's row."""
        self.registration["host_report"] = report
        _update(self.worker_id, host_report=report)

    def release_devices(self, devices: Devices) -> None:
        """Release devices, and look for a run that waits for them."""
        self.devices.release(devices)
        self.wake.set()

    def notify_deployments(self) -> None:
        """Wake the threads that wait for a new deployment, or for a change of its status."""
        with self._deployments_changed:
            self._deployments_changed.notify_all()

    def wait_for_deployments(self, seconds: float) -> None:
        """Wait until a deployment of this worker has changed, but no longer than this."""
        with self._deployments_changed:
            self._deployments_changed.wait(seconds)

    def leave(self) -> None:
        """Write that this worker has stopped."""
        self.devices.close()
        _update(self.worker_id, last_seen_at=database_now(), stopped_at=database_now())


def register_worker(settings: Settings, queues: Sequence[Queue], name: str | None) -> WorkerContext:
    """Insert this worker under an id that is new with each start; without queues it serves its host's."""
    host, launched = inspect_host(), load_host(settings)
    gpus = host.gpus
    if not queues and launched is not None and gpus:
        # A run that needs no GPU must not keep a machine that costs money.
        queues = [Queue.cuda]
    if not queues:
        queues = host.queues
        if host.unused is not None:
            logger.warning(host.unused)
    devices = _create_pool(settings, gpus if Queue.cuda in queues else [])
    stages = [stage for stage in StageKind if settings.trainer_python or supports_stage(stage)]
    row = Worker(
        name=name or f"{socket.gethostname()}-{os.getpid()}",
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=list(queues),
        stages=list(stages),
        capabilities=_find_capabilities(settings),
        slots=_count_slots(settings, queues, gpus),
        hardware=add_use(_read_hardware(host), settings.data_dir),
        versions=_read_versions(),
        host_id=launched.id if launched is not None else None,
        job_id=launched.job_id if launched is not None else None,
        node_address=find_node_address(settings),
    )
    with transaction() as session:
        session.add(row)
    worker = WorkerContext(
        row.id,
        settings,
        list(queues),
        stages,
        devices,
        row.capabilities,
        row.job_id,
        row.node_address,
        row.model_dump(),
    )
    worker.announce()
    return worker


def supports_stage(stage: StageKind) -> bool:
    """Return whether the packages that the stage needs are installed in this worker's environment."""
    return all(find_version(package) is not None for package in stage.stage.packages)


def _find_capabilities(settings: Settings) -> list[str]:
    """Return the programs that this host has, beside the packages of the trainers."""
    engines = [kind.value for kind in EngineKind if kind.capability and _has_engine(kind, settings)]
    environments = (
        ("gguf", settings.gguf_environment, GGUF_FILES, "write GGUF"),
        ("comet", settings.comet_environment, COMET_FILES, "score by COMET"),
    )
    found = []
    for name, folder, parts, purpose in environments:
        if folder and all((Path(folder) / part).is_file() for part in parts):
            found.append(name)
        elif folder:
            logger.warning(
                "%s is not an environment of `make %s`; this worker cannot %s", folder, name, purpose
            )
    if all(find_version(package) is not None for package in SIMILARITY_PACKAGES):
        found.append(TEXT_SIMILARITY)
    if settings.python_graders:
        fault = find_sandbox_fault()
        if fault is None:
            found.append(PYTHON_GRADER)
        else:
            logger.warning("This worker cannot run graders in Python: %s", fault)
    if settings.openai_api_key.get_secret_value():
        found.append(OPENAI)
    found += [capability_of(cloud) for cloud in find_clouds(settings, os.environ)]
    return [*found, *engines]


def _has_engine(kind: EngineKind, settings: Settings) -> bool:
    """Return whether the program that would start the engine exists."""
    command = settings.engine_commands.get(kind)
    if not command and kind is EngineKind.mlx:
        # Its program is part of this service, and needs only the package.
        return find_version("mlx-lm") is not None
    return shutil.which((command or ENGINES[kind].default_program)[0]) is not None


def _create_pool(settings: Settings, gpus: Sequence[Gpu]) -> DevicePool:
    try:
        return DevicePool(gpus, settings.device_locks_dir)
    except OSError as error:
        raise SystemExit(
            f"The folder {settings.device_locks_dir} of the GPUs' lock files cannot be created: {error}. Set "
            "TUNESMITH_DEVICE_LOCKS_DIR to a folder that all workers of this host can write to."
        ) from error


def _count_slots(settings: Settings, queues: Sequence[Queue], gpus: Sequence[Gpu]) -> dict[str, int]:
    return {queue: len(gpus) if queue is Queue.cuda else settings.max_runs_per_queue for queue in queues}


def _update(worker_id: str, **values: Any) -> bool:
    """Update the worker's row; return False if there is none."""
    statement = update(Worker).where(col(Worker.id) == worker_id).values(**values).returning(col(Worker.id))
    with transaction() as session:
        return session.scalar(statement) is not None


def _read_hardware(host: HostHardware) -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [{"name": gpu.name, "uuid": gpu.uuid, "memory_bytes": gpu.memory_bytes} for gpu in host.gpus],
        "unused": host.unused,
    }


def _read_versions() -> dict[str, str]:
    found = {package: find_version(package) for package in REPORTED_PACKAGES}
    installed = {package: version for package, version in found.items() if version}
    return {"python": sys.version.split()[0], **installed}
