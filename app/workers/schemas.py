"""Responses of the endpoints of workers and queues."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.runs.schemas import RunSummaryView
from trainers.configs import Queue


class WorkerView(BaseModel):
    """A worker process, from its start to its end."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the worker process; a restarted worker has a new one.")
    name: str = Field(description="Name of the worker, which restarts keep.")
    alive: bool = Field(description="Whether one of the last three heartbeats arrived.")
    host: str = Field(description="Name of the host.")
    pid: int = Field(description="Process id on the host.")
    node_address: str | None = Field(
        description="Address at which others reach it in runs on several hosts; null if it takes no part."
    )
    queues: list[str] = Field(description="Queues that it serves.")
    stages: list[str] = Field(description="Kinds of stages that it can run.")
    capabilities: list[str] = Field(
        description="Programs that it has in addition to the packages of the stages, such as `gguf`."
    )
    slots: dict[str, int] = Field(
        description="By queue, how many runs it can hold at once; on `cuda`, how many GPUs."
    )
    hardware: dict[str, Any] = Field(
        description="CPUs, memory and devices of the host; as of the last minute the memory in use and the "
        "utilization of each GPU, and the free space of the disk of the data directory."
    )
    versions: dict[str, str] = Field(description="Versions of Python and of the packages that stages use.")
    host_report: dict[str, Any] | None = Field(
        description="Checks of the host at the start of the worker, as `python -m workers doctor --json` "
        "prints them: `state` is `ok`, `warning` or `error`, and each of `checks` has `name`, `state`, "
        "`found` and `fix`. Null until they have ended."
    )
    problems: list[str] = Field(
        description="What fails in the worker and is retried, such as the connection to the broker."
    )
    runs: list[str] = Field(description="Ids of the runs that it holds now.")
    deployments: list[str] = Field(description="Ids of the deployments that it holds now.")
    started_at: datetime = Field(description="Time of the start.")
    last_seen_at: datetime | None = Field(description="Time of the last heartbeat.")
    stopped_at: datetime | None = Field(description="Time of the end; null if it has not stopped in order.")


class QueueView(BaseModel):
    """A queue: a kind of hardware, with what its live workers can hold and the runs for it."""

    queue: Queue = Field(description="Kind of hardware.")
    workers: int = Field(description="Live workers that serve it.")
    slots: int = Field(description="Runs that its workers can hold at once; on `cuda`, their GPUs.")
    free_slots: int = Field(description="Slots that nothing holds now.")
    running: int = Field(description="Runs that a worker holds.")
    waiting: int = Field(description="Queued runs that wait for nothing but a worker.")
    later: int = Field(description="Queued runs that need an earlier stage of their job first.")


class WaitingRunView(RunSummaryView):
    """A run that waits for its queue."""

    waiting_for: str | None = Field(description="What it waits for; null if it is about to start.")
