"""Workers: the queues that they serve, their hardware and their last heartbeat."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Worker(SQLModel, table=True):
    """One start of a worker process; each start has its own id, so that a lease names one process."""

    __tablename__ = "worker"

    id: str = Field(default_factory=lambda: new_id("worker"), primary_key=True)
    name: str
    host: str
    pid: int
    queues: list[str] = Field(default_factory=list, sa_type=Json)
    stages: list[str] = Field(default_factory=list, sa_type=Json)
    capabilities: list[str] = Field(
        default_factory=list,
        sa_type=Json,
        description="Programs that some stages need and not every worker has, such as `gguf`.",
    )
    slots: dict[str, int] = Field(
        default_factory=dict,
        sa_type=Json,
        description="By queue, how many runs the worker can hold at once; on `cuda`, how many GPUs.",
    )
    hardware: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    versions: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    host_report: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="Report of `workers doctor` at the start of the worker."
    )
    problems: list[str] = Field(default_factory=list, sa_type=Json)
    """What fails in the worker, as of its last heartbeat."""
    host_id: str | None = Field(
        default=None, index=True, description="The launched host on which it runs; null on other machines."
    )
    node_address: str | None = Field(
        default=None,
        description="Address at which other hosts reach this one; null if it joins no run on several hosts.",
    )
    job_id: str | None = Field(default=None, description="The job for which alone its host was launched.")
    started_at: datetime = time_field(default_now=True)
    last_seen_at: datetime | None = time_field(index=True)
    stopped_at: datetime | None = time_field()
