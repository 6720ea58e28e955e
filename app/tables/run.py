"""Runs, each the execution of one stage of a job, and what they need. `runs/lifecycle.py` writes statuses."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field
from trainers.configs import AnyStage, Queue, StageKind, parse_stage


class RunStatus(StrEnum):
    """The state of a run. Final are `cancelled`, `succeeded`, `failed` and `skipped`."""

    queued = "queued"
    running = "running"
    pausing = "pausing"
    paused = "paused"
    cancelling = "cancelling"
    cancelled = "cancelled"
    succeeded = "succeeded"
    failed = "failed"
    skipped = "skipped"  # A gate decided that the stage does not run.

    @property
    def finished(self) -> bool:
        """Whether the run has ended; only a retry starts it again."""
        return self in FINISHED

    @property
    def held(self) -> bool:
        """Whether a worker holds the run under a lease."""
        return self in HELD


class RequiredEnd(StrEnum):
    """How a run must have ended for one that needs it to start."""

    succeeded = "succeeded"
    failed = "failed"  # As a gate that is not met.
    finished = "finished"  # It succeeded or failed: a sweep tolerates runs that fail.

    def allows(self, status: RunStatus) -> bool:
        """Return whether a run with this status has ended so."""
        if self is RequiredEnd.finished:
            return status in (RunStatus.succeeded, RunStatus.failed)
        return status.value == self.value


class TrackingService(StrEnum):
    """A tracking service that shows the run in addition to this API."""

    mlflow = "mlflow"
    wandb = "wandb"
    tensorboard = "tensorboard"


FINISHED = frozenset({RunStatus.cancelled, RunStatus.succeeded, RunStatus.failed, RunStatus.skipped})
HELD = frozenset({RunStatus.running, RunStatus.pausing, RunStatus.cancelling})


class Run(SQLModel, table=True):
    """A stage, its progress and the lease of the worker that executes it."""

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("job_id", "position"),
        Index("ix_run_claim", "status", "queue", text("priority DESC"), "id"),
        Index("ix_run_lease", "status", "lease_expires_at"),
        # A list of jobs with a status finds them by their current run.
        Index("ix_run_status_job", "status", "job_id"),
        # A list of runs walks the index of its most selective filter, from the newest id.
        Index("ix_run_status_id", "status", "id"),
        Index("ix_run_stage_id", "stage", "id"),
        Index("ix_run_queue_id", "queue", "id"),
        Index("ix_run_worker_id", "worker_id", "id"),
        Index("ix_run_fingerprint", "fingerprint", "id"),
        # A worker that is free looks for runs on several hosts as often as for others.
        Index(
            "ix_run_nodes",
            "status",
            "queue",
            "id",
            sqlite_where=text("nodes > 1"),
            postgresql_where=text("nodes > 1"),
        ),
    )

    id: str = Field(default_factory=lambda: new_id("run"), primary_key=True)
    job_id: str = Field(foreign_key="job.id")
    position: int
    name: str
    full_name: str = Field(default="", description="Name of job and stage, for people; not unique.")
    stage: StageKind = Field(sa_type=enum_type(StageKind))
    queue: Queue = Field(sa_type=enum_type(Queue))
    priority: int = 0
    config: dict[str, Any] = Field(sa_type=Json)
    device_count: int = Field(default=1, description="Devices that the run reserves on the queue `cuda`.")

    nodes: int = Field(default=1, description="Workers that execute it together, with such devices each.")
    capability: str | None = Field(
        default=None, description="What a worker must have besides the packages of the stage."
    )

    own_host: bool = Field(
        default=False, description="Whether only workers of the host that its job asked for may claim it."
    )

    status: RunStatus = Field(default=RunStatus.queued, sa_type=enum_type(RunStatus))
    attempt: int = Field(default=0, description="Counts claims; the fencing token of a worker's writes.")
    failure_count: int = Field(default=0, description="Infrastructure failures since the last checkpoint.")
    worker_id: str | None = Field(default=None, foreign_key="worker.id")
    lease_expires_at: datetime | None = time_field()
    unmet_needs: int = Field(
        default=0,
        description="Number of runs that it needs and that have not ended as they must; it never grows, "
        "because only a run that stays as it is satisfies a need.",
    )
    claimable_at: datetime | None = time_field()
    needed_disk_bytes: int | None = Field(
        default=None,
        sa_type=BigInteger,
        description="Free disk space that a worker must have to claim the run, after a full disk ended it.",
    )
    notified_at: datetime | None = time_field()
    event_seq: int = Field(default=0, description="Number of the run's last event.")

    step: int = 0
    total_steps: int | None = None
    seconds_per_step: float | None = None
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    handled: bool = Field(
        default=False,
        description="Whether it failed as a gate that is not met, and a stage with `when: not_met` continues "
        "the job, or as a run of a sweep: the failure does not decide the job's status.",
    )
    result: dict[str, Any] | None = Field(default=None, sa_type=Json)
    metrics: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="The last and the extreme values of each metric, by name."
    )
    model_id: str | None = Field(default=None, foreign_key="model.id")
    inputs: dict[str, Any] | None = Field(
        default=None,
        sa_type=Json,
        description="The models and datasets of the last attempt by hash, and the versions of its code.",
    )
    fingerprint: str | None = Field(
        default=None, description="Hash of config and inputs: equal runs have equal outputs."
    )
    reused_from: str | None = Field(default=None, description="The run whose output this one has reused.")
    log_artifact: str | None = None
    tracking: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)

    created_at: datetime = time_field(default_now=True)
    started_at: datetime | None = time_field()
    finished_at: datetime | None = time_field()
    thinned_at: datetime | None = time_field(
        description="Time after the run's end when its events were reduced."
    )

    def stage_config(self) -> AnyStage:
        """Parse the stored config; raises ValidationError if a newer version has changed its fields."""
        return parse_stage(self.config)


class RunNeed(SQLModel, table=True):
    """An edge of a job's graph: a run of an earlier stage that a run needs, so there are no cycles."""

    __tablename__ = "run_need"

    run_id: str = Field(foreign_key="run.id", primary_key=True)
    needed_id: str = Field(foreign_key="run.id", primary_key=True, index=True)
    required_status: RequiredEnd = Field(
        default=RequiredEnd.succeeded,
        sa_type=enum_type(RequiredEnd),
        description="`succeeded`; `failed`, for a stage that runs when a gate is not met; or `finished`, for "
        "one that runs when the other has succeeded or failed.",
    )


class RunMember(SQLModel, table=True):
    """A worker of a run on several hosts: an offer until the attempt is claimed, then one of its nodes."""

    __tablename__ = "run_member"

    run_id: str = Field(foreign_key="run.id", primary_key=True)
    attempt: int = Field(primary_key=True)
    worker_id: str = Field(primary_key=True)
    node_rank: int | None = Field(default=None, description="0 is the leader; null is an offer.")
    address: str = Field(description="Address at which the other nodes reach this one.")
    port: int | None = Field(default=None, description="Of the leader: where the processes meet.")
    expires_at: datetime | None = time_field(
        description="End of the offer, null if it was withdrawn; or of the member's heartbeat."
    )
    ready_at: datetime | None = time_field(description="When its inputs were on its disk.")
    is_stopping: bool = Field(default=False, description="Whether its worker is shutting down.")
    ended_at: datetime | None = time_field(description="When its program ended.")
    error: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="Why its program failed, with the time of the error."
    )
    created_at: datetime = time_field(default_now=True)
