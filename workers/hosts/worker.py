"""This worker: what it is, what it can run, and how it makes itself known."""

import importlib.metadata
import os
import platform
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from app.settings import Settings
from app.storage.database import database_now, transaction
from app.tables import Worker
from trainers.configs import Queue, StageKind
from workers.hosts.devices import DevicePool, find_gpus
from workers.hosts.lease import Leases
from workers.tracking.tracker import Tracker

PACKAGES = ("tunesmith", "torch", "transformers", "trl", "peft", "mlx", "mlx-lm", "vllm", "celery")
# Without these a stage's program cannot start here.
TRAINING = ("torch", "transformers", "trl", "peft", "datasets")
NEEDS = {
    StageKind.prepare: ("transformers",),
    StageKind.preflight: TRAINING,
    StageKind.sft: TRAINING,
    StageKind.dpo: TRAINING,
    StageKind.grpo: TRAINING,
    StageKind.merge: ("torch", "transformers", "peft"),
    StageKind.evaluate: ("torch", "transformers", "peft"),
    StageKind.generate: ("torch", "transformers", "peft"),
    StageKind.deploy: ("torch", "transformers", "peft"),
}


@dataclass
class WorkerContext:
    """What the threads of one worker share."""

    worker_id: str
    settings: Settings
    queues: list[Queue]
    stages: list[StageKind]
    devices: DevicePool
    leases: Leases = field(init=False)
    tracker: Tracker = field(init=False)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.leases = Leases(self.settings.heartbeat_seconds, self.announce)
        self.tracker = Tracker(self.settings)

    def announce(self) -> None:
        """Tell that this worker lives, by the database's clock."""
        _update(self.worker_id, last_seen_at=database_now())

    def leave(self) -> None:
        """Tell that this worker has stopped."""
        _update(self.worker_id, last_seen_at=database_now(), stopped_at=database_now())


def register_worker(settings: Settings, queues: Sequence[Queue], name: str | None) -> WorkerContext:
    """Make this worker known under an id that is new with each start."""
    gpus = find_gpus()
    stages = [stage for stage in StageKind if settings.trainer_python or supports_stage(stage)]
    worker = Worker(
        name=name or f"{socket.gethostname()}-{os.getpid()}",
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=list(queues),
        stages=list(stages),
        hardware=_hardware()
        | {"gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in gpus]},
        versions=_versions(),
    )
    with transaction() as session:
        session.add(worker)
    host = WorkerContext(worker.id, settings, list(queues), stages, DevicePool(gpus))
    host.announce()
    return host


def supports_stage(stage: StageKind) -> bool:
    """Whether the packages that a stage needs are installed beside this worker."""
    return all(_version(package) is not None for package in NEEDS[stage])


def _update(worker_id: str, **values: Any) -> None:
    with transaction() as session:
        session.execute(update(Worker).where(col(Worker.id) == worker_id).values(**values))


def _hardware() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _versions() -> dict[str, str]:
    found = {package: _version(package) for package in PACKAGES}
    installed = {package: version for package, version in found.items() if version}
    return {"python": sys.version.split()[0], **installed}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
