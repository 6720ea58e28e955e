"""Config of the `deploy` stage: keep a model ready on an engine."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trainers.configs.base import ModelRef, StageConfig, StageName


class EngineKind(StrEnum):
    """The program that generates text."""

    hf = "hf"


class DeployConfig(StageConfig):
    """Serve a model under a name on the OpenAI-compatible endpoint."""

    stage: Literal["deploy"] = "deploy"
    model: ModelRef
    deployment: StageName = Field(description="Name by which clients ask for the model.")
    engine: EngineKind = EngineKind.hf
    ready_timeout_seconds: float = Field(600, gt=0, le=7200, description="How long its start may take.")
