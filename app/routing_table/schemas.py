"""Requests and responses of the endpoints of the routing table."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.settings import get_settings
from serving.gateway.traffic.counts import MAX_BUCKET
from trainers.configs import Config, EngineTask
from trainers.configs.base import StageName


class RouteTargetView(BaseModel):
    """A deployment that serves a share of a route's requests."""

    deployment_id: str = Field(description="Id of the deployment; empty if the alias has no deployment left.")
    base_url: str = Field(description="Root URL of the engine, without /v1; empty unless it is ready.")
    upstream_model: str = Field(description="Name of the model on the engine.")
    share: float = Field(description="Share of the requests, relative to the sum of the route's shares.")
    store_days: float = Field(
        0, description="Days for which a gateway with a store keeps answers; 0 stores none."
    )
    task: EngineTask | None = Field(
        None, description="What the engine computes; null if the alias has no deployment left."
    )


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
    measured_version: int | None = Field(
        None,
        description="Version of an alias whose requests gateways count for a promotion; null for every other "
        "route.",
    )


class ChatModelView(BaseModel):
    """A name that a caller can chat with."""

    name: str = Field(description="Name that clients send as `model`.")
    status: str = Field(
        description="`ready`; `asleep`, which a request ends; `queued` or `starting` for the first time; or "
        "`stopped` if the alias has no deployment left."
    )
    shares: int = Field(description="Number of deployments that share the requests.")
    stores: bool = Field(description="Whether answers are stored whose storage is requested.")


class RouteUseCreate(Config):
    """Deployments that served requests recently."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"deployment_ids": []}]})

    deployment_ids: list[str] = Field(
        max_length=1000, description="Ids of the deployments; unknown ids are ignored."
    )


# JSON numbers are exact to here, and no process serves as many requests.
MAX_REQUESTS = 2**53
BucketNumber = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}$")]
Requests = Annotated[int, Field(ge=0, le=MAX_REQUESTS)]
Histogram = Annotated[dict[BucketNumber, Requests], Field(max_length=MAX_BUCKET + 1)]
GatewayId = Annotated[str, StringConstraints(pattern=r"^gateway_[0-9a-f]{24}$")]


class TrafficCountsBody(Config):
    """Requests by outcome, and histograms of times; a bucket is a power of 10^(1/100) above a millisecond."""

    succeeded: Requests = Field(description="Requests with a complete response.")
    failed: Requests = Field(
        description="Requests with status 500 or above except 501, or 429 of the engine, with a broken "
        "stream, and attempts without a response."
    )
    rejected: Requests = Field(description="Requests with another status of 400 or above.")
    cancelled: Requests = Field(description="Requests whose client disconnected early.")
    seconds: Histogram = Field(description="Durations of the requests that succeeded.")
    cancelled_seconds: Histogram = Field(description="Times after which clients disconnected.")
    first_token_seconds: Histogram = Field(description="Times until a stream began.")
    cancelled_first_token_seconds: Histogram = Field(
        description="Times after which clients disconnected from streams that had not begun."
    )


class TrafficItem(Config):
    """The requests to one deployment under one version of an alias."""

    alias: StageName = Field(description="Name of the alias.")
    version: int = Field(ge=1, le=2**31 - 1, description="Version of the alias.")
    deployment_id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,64}$")] = Field(
        description="Id of the deployment."
    )
    counts: TrafficCountsBody = Field(description="Counts since the gateway process started.")


class TrafficCreate(Config):
    """What one gateway process has counted since it started; each report replaces the one before it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"reporter": "gateway_000000000000000000000000", "items": []}],
        }
    )

    reporter: GatewayId = Field(description="Id of the gateway process.")
    items: list[TrafficItem] = Field(
        max_length=200, description="The counts; those of an alias without a promotion are ignored."
    )
