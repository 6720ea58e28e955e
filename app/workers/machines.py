"""Machines: the workers of each host together, with its devices and what runs on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.runs.schemas import progress
from app.tables import Deployment, DeploymentStatus, Run, RunStatus
from app.workers.host_hardware import describe_devices
from app.workers.schemas import WorkerView


@dataclass(frozen=True)
class HostMachine:
    """A host with its workers, newest first."""

    name: str
    workers: Sequence[WorkerView]

    @property
    def id(self) -> str:
        """The id of the newest worker: names of hosts are not unique ids."""
        return self.workers[0].id

    @cached_property
    def newest(self) -> WorkerView:
        """The worker that has described the host last."""
        return next((worker for worker in self.workers if worker.alive), self.workers[0])

    @property
    def alive(self) -> bool:
        """Whether a worker of the host is alive."""
        return self.newest.alive

    @property
    def is_idle(self) -> bool:
        """Whether a worker is alive, and none holds a run or a deployment."""
        return self.alive and not any(worker.runs or worker.deployments for worker in self.workers)

    @cached_property
    def gpus(self) -> list[dict[str, Any]]:
        """The GPUs that its workers use, each once."""
        workers = [worker for worker in self.workers if worker.alive == self.alive]
        gpus = [gpu for worker in workers for gpu in worker.hardware.get("gpus", [])]
        return list({gpu.get("uuid", str(number)): gpu for number, gpu in enumerate(gpus)}.values())

    @property
    def gpu_bytes(self) -> int:
        """The memory of its GPUs, as far as their driver reports it."""
        return sum(gpu.get("memory_bytes") or 0 for gpu in self.gpus)

    @property
    def gpu_free_bytes(self) -> int | None:
        """What of that is free, as of the last minute; None if the driver of one does not report it."""
        used = [gpu.get("used_bytes") for gpu in self.gpus if gpu.get("memory_bytes")]
        known = [size for size in used if size is not None]
        return max(0, self.gpu_bytes - sum(known)) if used and len(known) == len(used) else None

    @property
    def gpu_text(self) -> str:
        """Its GPUs in words, such as `2 × NVIDIA H200`."""
        return describe_devices([gpu["name"] for gpu in self.gpus])


@dataclass(frozen=True)
class HeldWork:
    """A run or a deployment that a worker holds."""

    id: str
    name: str
    status: RunStatus | DeploymentStatus
    progress: float | None = None


def group_by_host(workers: Sequence[WorkerView]) -> list[HostMachine]:
    """Return the hosts of workers, in the order of the first worker of each."""
    groups: dict[str, list[WorkerView]] = {}
    for worker in workers:
        groups.setdefault(worker.host, []).append(worker)
    return [HostMachine(name, group) for name, group in groups.items()]


def list_held_work(session: Session, workers: Sequence[WorkerView]) -> dict[str, HeldWork]:
    """Return the runs and deployments that workers hold, by their ids."""
    run_ids = {run_id for worker in workers for run_id in worker.runs}
    deployment_ids = {deployment_id for worker in workers for deployment_id in worker.deployments}
    runs = session.scalars(select(Run).where(col(Run.id).in_(run_ids))) if run_ids else ()
    held = {run.id: HeldWork(run.id, run.full_name or run.name, run.status, progress(run)) for run in runs}
    if deployment_ids:
        for row in session.scalars(select(Deployment).where(col(Deployment.id).in_(deployment_ids))):
            held[row.id] = HeldWork(row.id, row.name, row.status)
    return held
