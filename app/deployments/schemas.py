"""Request and response schemas of the deployment endpoints."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.runs.schemas import ErrorView
from app.tables import Deployment, DeploymentStatus
from trainers.configs import (
    DeploymentChoice,
    EngineKind,
    EngineOptions,
    EngineTask,
    ParityMode,
    Pooling,
    Queue,
)
from trainers.configs.base import NonEmpty, StageName

CREATE_EXAMPLES = {
    "plain": {
        "summary": "A model with all defaults",
        "value": {"name": "starter-next", "model": "starter"},
    },
    "idle": {
        "summary": "Stop the engine after ten minutes without a request; four adapters share it",
        "value": {
            "name": "starter",
            "model": "starter",
            "idle_seconds": 600,
            "options": {"max_adapters": 4},
        },
    },
    "embeddings": {
        "summary": "An embedding model, with the pooling of its own files",
        "value": {"name": "embedder", "model": "Qwen/Qwen3-Embedding-0.6B", "task": "embed"},
    },
}


class DeploymentCreate(DeploymentChoice):
    """A model to keep ready; a deployment with the same name serves until this one is ready."""

    name: StageName = Field(description="Name that clients send as `model`.")
    model: NonEmpty = Field(description="A hub id, a folder under an allowed root, or a registry id.")
    queue: Queue | None = Field(
        None, description="Hardware to run on; by default the best that a live worker has."
    )


class DeploymentView(BaseModel):
    """A deployment and its current state."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the deployment, `deployment_…`.")
    name: str = Field(description="Name that clients send as `model`.")
    status: DeploymentStatus = Field(description="State of the deployment.")
    base: str = Field(description="Hub id, folder or registry id of the full weights that the engine loads.")
    model_id: str | None = Field(description="Id of the registry model that it serves.")
    task: EngineTask = Field(description="What it computes: text or embeddings.")
    pooling: Pooling | None = Field(
        description="Pooling of an embedding model whose files have none; null for every other model."
    )
    engine: EngineKind = Field(description="Program that computes it.")
    options: EngineOptions = Field(description="Options of the engine.")
    queue: Queue = Field(description="Hardware that it runs on.")
    worker_id: str | None = Field(description="Id of the worker that runs the engine now.")
    address: str | None = Field(description="Base URL of the engine for gateways; null until it is ready.")
    upstream_model: str | None = Field(description="Name of the model on the engine.")
    replaces: str | None = Field(
        description="Id of the deployment that serves this name until this one is ready."
    )
    idle_seconds: float = Field(
        description="Seconds without a request after which the engine is stopped; 0 is never."
    )
    store_days: float = Field(
        description="Days for which chats with `store: true` and responses are kept; 0 stores none."
    )
    parity_mode: ParityMode = Field(
        description="What happens if the served model differs from the trained one."
    )
    parity: dict[str, Any] | None = Field(description="Comparison of the served model with the trained one.")
    restart_count: int = Field(description="Times that the engine stopped unexpectedly and was restarted.")
    error: ErrorView | None = Field(
        description="Why it failed, why it waits for the hub, or why its engine was last restarted."
    )
    waiting_for: str | None = Field(None, description="What a queued deployment waits for.")
    has_worker: bool = Field(
        True,
        description="Whether a live worker serves the queue of a queued deployment; it cannot start without.",
    )
    created_at: datetime = Field(description="When it was requested.")
    ready_at: datetime | None = Field(description="When it last became ready.")
    last_used_at: datetime | None = Field(description="Time of its last request, a few seconds late.")
    stopped_at: datetime | None = Field(description="When it stopped or failed.")


def deployment_view(
    deployment: Deployment, waiting_for: str | None, has_worker: bool = True
) -> DeploymentView:
    """Build the view of a deployment."""
    status = deployment.current_status
    update: dict[str, Any] = {"status": status, "waiting_for": waiting_for, "has_worker": has_worker}
    if not status.held:
        update |= {"worker_id": None, "address": None}
    return DeploymentView.model_validate(deployment).model_copy(update=update)
