"""Config of the `deploy` stage: keep a model ready on an engine."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.configs.base import ModelRef, Queue, StageConfig, StageName
from trainers.configs.engines import EngineChoice, EngineTask, Pooling, check_task

# YAML parses these bare words as booleans.
_YAML_WORDS = {True: "on", False: "off"}


def _restore_word(value: Any) -> Any:
    return _YAML_WORDS[value] if isinstance(value, bool) else value


class ParityMode(StrEnum):
    """Effect of a difference between the served model and the trained one."""

    on = "on"  # The deployment fails.
    warn = "warn"  # The deployment opens, and its row contains the report.
    off = "off"  # The models are not compared.


class DeploymentChoice(EngineChoice):
    """An engine for a deployment, with its task, parity check, idle time and storage of answers."""

    task: EngineTask = Field(
        EngineTask.generate,
        description="What the deployment computes: `generate` serves chats, completions and responses, "
        "`embed` embeddings.",
    )
    pooling: Pooling | None = Field(
        None,
        description="How an embedding model's hidden states become one vector of the length 1, for a model "
        "whose files do not say it. Null is for a model in the format of sentence-transformers, which do.",
    )
    parity: Annotated[ParityMode | None, BeforeValidator(_restore_word)] = Field(
        None,
        description="Whether the served model is compared with the trained one before it is ready. Null is "
        "the service's default, `on`.",
    )
    idle_seconds: float | None = Field(
        None,
        ge=0,
        description="Seconds without a request after which the engine is stopped; the next request starts it "
        "again. 0 is never, null the service's default.",
    )
    store_days: float = Field(
        0,
        ge=0,
        le=3650,
        description="Days for which the gateway of the API keeps chats with `store: true`, and responses "
        "without `store: false`, in the database, readable for the key that sent them and for admins. 0 "
        "stores none.",
    )

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        check_task(self.engine, self.task, self.pooling, self.options)
        if self.task is EngineTask.embed and self.store_days:
            raise ValueError("store_days has no effect on embeddings, which are not stored: leave it out")
        return self


class DeployConfig(StageConfig, DeploymentChoice):
    """Serve a model under a name on the OpenAI-compatible endpoint."""

    stage: Literal["deploy"] = Field("deploy", description="Kind of the stage.")
    model: ModelRef
    deployment: StageName = Field(description="Name of the model in requests to the endpoint.")
    ready_timeout_seconds: float = Field(
        600, gt=0, le=7200, description="Seconds within which the deployment must be ready."
    )

    @model_validator(mode="after")
    def _check_no_limits(self) -> Self:
        if self.limits is not None:
            raise ValueError(
                "a deploy stage starts no program, so limits have no effect; set ready_timeout_seconds"
            )
        return self

    @property
    def device_count(self) -> int:
        """None: the engine outlives the run and reserves its own devices."""
        return 0

    @property
    def capability(self) -> str | None:
        """The engine."""
        return self.engine.capability

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """The queues of the engine."""
        return self.engine.suitable_queues
