"""Config of the `deploy` stage: keep a model ready on an engine."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainers.configs.base import ModelRef, StageConfig, StageName
from trainers.configs.engines import EngineChoice

# YAML reads the bare words as truth values.
_SPELLED = {True: "on", False: "off"}


def _as_word(value: Any) -> Any:
    return _SPELLED[value] if isinstance(value, bool) else value


class ParityMode(StrEnum):
    """What is done when the engine does not answer as the trained model does."""

    on = "on"  # The deployment fails.
    warn = "warn"  # It is served, and what was found stands with it.
    off = "off"  # Nothing is compared.


class DeploymentChoice(EngineChoice):
    """An engine for a model that is kept ready, and how long and on what proof it is."""

    parity: Annotated[ParityMode | None, BeforeValidator(_as_word)] = Field(
        None,
        description="Whether the served model is compared with the trained one before it is ready; null is "
        "the service's default, which is on.",
    )
    idle_seconds: float | None = Field(
        None,
        ge=0,
        description="It goes to sleep when unused for so long, and the next request wakes it; 0 is never, "
        "null the service's default.",
    )


class DeployConfig(StageConfig, DeploymentChoice):
    """Serve a model under a name on the OpenAI-compatible endpoint."""

    stage: Literal["deploy"] = Field("deploy", description="Kind of the stage.")
    model: ModelRef
    deployment: StageName = Field(description="Name by which clients ask for the model.")
    ready_timeout_seconds: float = Field(600, gt=0, le=7200, description="How long its start may take.")
