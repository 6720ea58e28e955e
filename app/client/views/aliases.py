"""Aliases of deployments, and promotions that move them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from app.client.views.base import ApiView


class AliasTargetRecord(ApiView):
    """A deployment that serves requests of an alias."""

    api_schema = "AliasTargetView"

    deployment: str
    share: float
    deployment_id: str | None = None
    status: str | None = None


class AliasRecord(ApiView):
    """A name that leads to deployments, each with its share of the requests."""

    api_schema = "AliasView"

    name: str
    version: int
    targets: list[AliasTargetRecord]
    changed_by: str | None = None
    created_at: datetime
    updated_at: datetime


class PromotionStepRecord(ApiView):
    """A step of a promotion, with what was measured in it."""

    api_schema = "PromotionStepView"

    share: float
    state: str
    min_seconds: float
    min_requests: int
    started_at: datetime | None = None
    measured: dict[str, Any] = Field(default_factory=dict)
    conditions: list[dict[str, Any]] = Field(default_factory=list)


class PromotionRecord(ApiView):
    """A run that moves an alias to a deployment by steps."""

    api_schema = "PromotionView"

    run_id: str
    job_id: str
    alias: str
    deployment: str
    deployment_id: str | None = None
    status: str
    outcome: str | None = None
    steps: list[PromotionStepRecord]
    error: dict[str, Any] | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
