"""Requests and responses of the endpoints of the routing table."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.settings import get_settings
from trainers.configs import Config


class RouteTargetView(BaseModel):
    """A deployment that serves a share of a route's requests."""

    deployment_id: str = Field(description="Id of the deployment; empty if the alias has no deployment left.")
    base_url: str = Field(description="Root URL of the engine, without /v1; empty unless it is ready.")
    upstream_model: str = Field(description="Name of the model on the engine.")
    share: float = Field(description="Share of the requests, relative to the sum of the route's shares.")


class RouteView(BaseModel):
    """A model name that clients can send: that of a deployment or of an alias."""

    name: str = Field(description="Name that clients send as `model`.")
    targets: list[RouteTargetView] = Field(description="Deployments that share the requests.")
    created_at: datetime = Field(description="Time of creation of the deployment or the alias.")
    not_ready: str | None = Field(
        None,
        description="Status of a deployment that starts for the first time, and has no target yet; null for "
        "every other route.",
    )
    owned_by: str = Field(
        default_factory=lambda: get_settings().organization, description="Name of the organization."
    )


class RouteUseCreate(Config):
    """Deployments that served requests recently."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"deployment_ids": []}]})

    deployment_ids: list[str] = Field(
        max_length=1000, description="Ids of the deployments; unknown ids are ignored."
    )
