"""What the alias endpoints take and give."""

import math
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.tables import DeploymentStatus
from trainers.configs import Config
from trainers.configs.base import StageName

EXAMPLES = {
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


ROLLBACK_EXAMPLES = {"before": {"summary": "To where it led before", "value": {}}}


class AliasTarget(Config):
    """A deployment, by its name, and its part of the requests."""

    deployment: StageName = Field(description="Name of a deployment that is ready or asleep.")
    share: float = Field(1.0, gt=0, le=1, description="Part of the requests; all shares sum to 1.")


class AliasUpdate(Config):
    """Where an alias is to lead."""

    targets: list[AliasTarget] = Field(min_length=1, max_length=20)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [target.deployment for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError("targets name a deployment twice: give it one share")
        total = math.fsum(target.share for target in self.targets)
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the shares of targets sum to {total:g}, and must sum to 1")
        return self


class AliasRollback(Config):
    """How far back an alias is to go."""

    version: int | None = Field(
        None, ge=1, description="A version of its history; by default the one before that which it has now."
    )


class AliasTargetView(BaseModel):
    """A target as it stands."""

    deployment: str
    share: float
    deployment_id: str | None = Field(description="The deployment that has the name now; null if none has.")
    status: DeploymentStatus | None


class AliasView(BaseModel):
    """An alias as it stands. A target without a deployment gets no requests; the others share its part."""

    name: str
    version: int
    targets: list[AliasTargetView]
    created_at: datetime
    updated_at: datetime


class AliasVersionView(BaseModel):
    """One move of an alias."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    version: int
    targets: list[AliasTarget]
    restored_version: int | None = Field(description="The version that a rollback brought back.")
    created_at: datetime
