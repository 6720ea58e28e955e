"""What gateways are told, and what they tell."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from trainers.configs import Config


class RouteTargetView(BaseModel):
    """An engine that answers for a name, or a deployment that has to be woken first."""

    deployment_id: str
    base_url: str = Field(description="Root of the engine, without /v1; empty while it sleeps.")
    upstream_model: str = Field(description="Name by which the engine knows the model.")
    share: float = Field(description="Part of the requests, against the sum of all shares.")


class RouteView(BaseModel):
    """A name that clients may ask for: of a deployment, or of an alias."""

    name: str
    targets: list[RouteTargetView]
    created_at: datetime


class RouteUseCreate(Config):
    """Deployments that were asked lately."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"deployment_ids": []}]})

    deployment_ids: list[str] = Field(max_length=1000, description="Ids; those that are unknown are ignored.")
