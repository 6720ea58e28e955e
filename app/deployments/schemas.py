"""What the API says of deployments."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.tables import DeploymentStatus
from trainers.configs import DeploymentChoice, EngineKind, EngineOptions, ParityMode, Queue
from trainers.configs.base import NonEmpty, StageName


class DeploymentCreate(DeploymentChoice):
    """A model to keep ready; a deployment of the same name serves on until this one is ready."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "starter", "model": "starter"},
                {"name": "starter", "model": "starter", "idle_seconds": 600, "options": {"max_adapters": 4}},
            ]
        },
    )

    name: StageName = Field(description="Name by which clients ask for the model.")
    model: NonEmpty = Field(description="A hub id, a folder under an allowed root, or an id of the registry.")
    queue: Queue | None = Field(None, description="Hardware to run on; the service's default if not given.")


class DeploymentView(BaseModel):
    """A deployment as it stands."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    status: DeploymentStatus
    base: str
    model_id: str | None
    engine: EngineKind
    options: EngineOptions
    queue: Queue
    worker_id: str | None
    address: str | None = Field(description="Where gateways reach the engine; null until it is ready.")
    upstream_model: str | None = Field(description="Name by which the engine knows the model.")
    replaces: str | None = Field(description="The deployment that serves this name until this one is ready.")
    idle_seconds: float = Field(description="Unused for so long, it goes to sleep; 0 is never.")
    parity_mode: ParityMode
    parity: dict[str, Any] | None = Field(description="How the served model compared with the trained one.")
    restart_count: int
    error: dict[str, Any] | None
    waiting_for: str | None = None
    created_at: datetime
    ready_at: datetime | None
    last_used_at: datetime | None = Field(description="Last request, a few seconds late.")
    stopped_at: datetime | None
