"""Config of the `deploy` stage: keep a model ready on an engine."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import ModelRef, StageConfig, StageName
from trainers.configs.engines import EngineChoice


class DeployConfig(StageConfig, EngineChoice):
    """Serve a model under a name on the OpenAI-compatible endpoint."""

    stage: Literal["deploy"] = "deploy"
    model: ModelRef
    deployment: StageName = Field(description="Name by which clients ask for the model.")
    ready_timeout_seconds: float = Field(600, gt=0, le=7200, description="How long its start may take.")
