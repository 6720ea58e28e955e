"""What the worker endpoint gives."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class WorkerView(BaseModel):
    """One start of a worker on a host."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    alive: bool = Field(description="Whether it was heard of in the last three heartbeats.")
    host: str
    pid: int
    queues: list[str]
    stages: list[str] = Field(description="Kinds of stages that it can run.")
    hardware: dict[str, Any]
    versions: dict[str, str]
    runs: list[str] = Field(description="Ids of the runs that it holds now.")
    deployments: list[str] = Field(description="Ids of the deployments that it keeps ready now.")
    started_at: datetime
    last_seen_at: datetime | None
    stopped_at: datetime | None
