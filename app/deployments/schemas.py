"""What the API says of deployments."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.tables import DeploymentStatus
from trainers.configs import EngineChoice, EngineKind, EngineOptions, Queue
from trainers.configs.base import NonEmpty, StageName


class DeploymentCreate(EngineChoice):
    """A model to keep ready; a live deployment of the same name is stopped."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "starter", "model": "starter"}]},
    )

    name: StageName = Field(description="Name by which clients ask for the model.")
    model: NonEmpty = Field(description="A hub id, a folder under an allowed root, or an id of the registry.")
    queue: Queue | None = Field(None, description="Hardware to run on; the service's default if not given.")


class DeploymentOut(BaseModel):
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
    restarts: int
    error: dict[str, Any] | None
    waiting_for: str | None = None
    created_at: datetime
    ready_at: datetime | None
    stopped_at: datetime | None
