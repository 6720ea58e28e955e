"""Leases, queues and the limits of runs."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings

from trainers.configs import Queue, StageKind, StageLimits
from trainers.configs.base import MAX_NEEDS
from trainers.configs.training import MAX_NODES


class SchedulingSettings(BaseSettings):
    """Leases, queues and the limits of runs."""

    default_queue: Annotated[Queue | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="Queue of stages and deployments that name none; empty chooses the best hardware that a "
        "live worker has.",
    )
    lease_seconds: float = Field(
        30, gt=0, description="Seconds after which a lease that is not renewed expires."
    )
    heartbeat_seconds: float = Field(
        10, gt=0, description="Seconds between two renewals of a worker's leases."
    )
    heartbeat_file: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="File that a worker writes after each heartbeat, for `python -m workers.healthcheck "
        "FILE`; empty writes none. Each worker needs a file of its own.",
    )
    sweep_seconds: float = Field(
        5,
        gt=0,
        description="Seconds between two sweeps, which release expired leases and notify queues. A worker "
        "also looks for runs at this interval.",
    )
    renotify_seconds: float = Field(
        15, gt=0, description="Seconds that a run waits in the queue before its queue is notified again."
    )
    max_runs_per_queue: int = Field(
        1,
        ge=1,
        description="Maximum number of runs that a worker executes at once on the queue `cpu`, and on `mlx`. "
        "On `cuda`, each run has GPUs of its own, and their number is the limit.",
    )
    max_batches_per_worker: int = Field(
        4, ge=1, description="Maximum number of batches that a worker sends at once, besides its other runs."
    )
    max_overtake_seconds: float = Field(
        600,
        ge=0,
        description="Seconds for which runs that need fewer GPUs may start before an older run that waits "
        "for more GPUs; after that, GPUs that become free are kept for it.",
    )
    max_nodes: int = Field(
        8, ge=1, le=MAX_NODES, description="Maximum of `nodes`, the hosts on which one run may train."
    )
    node_address: str = Field(
        "",
        max_length=255,
        description="Address at which other hosts reach this one in runs on several hosts; empty means that "
        "of the route to the database. A worker behind a tunnel takes no part unless it is set. Traffic "
        "between the hosts is neither authenticated nor encrypted: use a private network.",
    )
    node_ports: str = Field(
        "29500-29599",
        pattern=r"^[0-9]{1,5}-[0-9]{1,5}$",
        description="Ports of the first host of such a run, of which one is where the processes meet. They "
        "then also connect to each other on ports that the system chooses.",
    )
    device_locks_dir: Path = Field(
        Path("/tmp/tunesmith-gpus"),  # noqa: S108 — all users of the host must use the same folder
        description="Folder of the lock files with which the workers of a host share its GPUs.",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="Maximum number of infrastructure failures since the last checkpoint; one more fails "
        "the run.",
    )
    max_sweep_runs: int = Field(
        16, ge=1, le=MAX_NEEDS, description="Maximum number of runs that the sweeps of a job may add."
    )
    stop_grace_seconds: float = Field(
        5, gt=0, description="Seconds between the request to stop a cancelled program and killing it."
    )
    pause_grace_seconds: float = Field(
        120,
        gt=0,
        description="Seconds between the request to save a checkpoint and stop, and killing the program; "
        "at least twice what an earlier checkpoint of the attempt took, or what the first may take by its "
        "size.",
    )
    stage_limits: dict[StageKind, StageLimits] = Field(
        default_factory=dict,
        description='Limits of one attempt by kind of stage, as JSON, such as `{"prepare": {"max_seconds": '
        '3600, "max_memory_bytes": null}}`; null means no limit. A limit that is not named keeps its '
        "default. A job may set lower ones, and a worker's own apply as well.",
    )

    @property
    def node_port_range(self) -> range:
        """The ports of `node_ports`."""
        first, last = map(int, self.node_ports.split("-"))
        return range(first, last + 1)

    @field_validator("node_ports")
    @classmethod
    def _check_ports(cls, value: str) -> str:
        first, last = map(int, value.split("-"))
        if not 1024 <= first <= last <= 65535:
            raise ValueError("write two ports from 1024 to 65535, such as 29500-29599, the lower one first")
        return value

    def limits_of(self, stage: StageKind) -> StageLimits:
        """Return the limits of one attempt at a stage of this kind."""
        return stage.stage.limits.overridden_by(self.stage_limits.get(stage))

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        """Reject a lease that one late heartbeat would lose."""
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "lease_seconds must be at least twice heartbeat_seconds, or one late heartbeat loses a run"
            )
        return self
