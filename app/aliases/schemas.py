"""Requests and responses of the endpoints of aliases."""

import math
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.tables import DeploymentStatus
from trainers.configs import Config
from trainers.configs.base import DeploymentName

MAX_TARGETS = 20
UPDATE_EXAMPLES = {
    "whole": {"summary": "All requests to one deployment", "value": {"targets": [{"deployment": "starter"}]}},
    "canary": {
        "summary": "A tenth of the requests to a new deployment",
        "value": {
            "targets": [
                {"deployment": "starter", "share": 0.9},
                {"deployment": "starter-next", "share": 0.1},
            ]
        },
    },
}
ROLLBACK_EXAMPLES = {"previous": {"summary": "Restore the previous version", "value": {}}}


class AliasTarget(Config):
    """A deployment and its share of an alias's requests."""

    deployment: DeploymentName = Field(description="Name of a deployment that is ready or asleep.")
    share: float = Field(
        1.0, gt=0, le=1, description="Share of the requests; the shares of all targets sum to 1."
    )


class AliasUpdate(Config):
    """The new targets of an alias."""

    targets: list[AliasTarget] = Field(
        min_length=1, max_length=MAX_TARGETS, description="Deployments that serve the alias's requests."
    )

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        names = [target.deployment for target in self.targets]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"the targets contain the deployment {repeated!r} more than once")
        total = math.fsum(target.share for target in self.targets)
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the targets must sum to 1, not to {total:g}")
        return self


class AliasRollback(Config):
    """The version of an alias that a rollback restores."""

    version: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="A version of the alias; by default the one before the current version.",
    )


class AliasTargetView(BaseModel):
    """A target of an alias, with its deployment."""

    deployment: str = Field(description="Name of the deployment.")
    share: float = Field(description="Share of the requests.")
    deployment_id: str | None = Field(
        description="Id of the deployment that has this name now; null if there is none. Such a target gets "
        "no requests; the other targets share them."
    )
    status: DeploymentStatus | None = Field(description="Status of that deployment.")


class AliasView(BaseModel):
    """An alias with its current targets."""

    name: str = Field(description="Name of the alias, which clients send as `model`.")
    version: int = Field(description="Number of the current version; every change adds one.")
    targets: list[AliasTargetView] = Field(description="Deployments that serve the alias's requests.")
    changed_by: str | None = Field(
        description="Id of the run or of the API key that made the change; null on a service without keys."
    )
    created_at: datetime = Field(description="Time of creation.")
    updated_at: datetime = Field(description="Time of the last change of the targets.")


class AliasVersionView(BaseModel):
    """The targets of an alias after one change."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the version.")
    version: int = Field(description="Number of the version, from 1.")
    targets: list[AliasTarget] = Field(description="Targets of this version.")
    restored_version: int | None = Field(
        description="The version whose targets a rollback restored; null for any other change."
    )
    changed_by: str | None = Field(
        description="Id of the run or of the API key that made the change; null on a service without keys."
    )
    created_at: datetime = Field(description="Time of the change.")
