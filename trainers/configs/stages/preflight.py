"""Config of the `preflight` stage: look for what would waste a training run, before it starts."""

from typing import Annotated, Literal

from pydantic import Field

from trainers.configs.base import Config, NonEmpty, StageConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.sft import SftConfig


class HostMemory(Config):
    """The memory that a living worker offers to one run."""

    worker: NonEmpty = Field(description="Name of the worker.")
    device: Literal["cpu", "cuda"] = "cpu"
    devices: int = Field(1, ge=1, le=1024, description="GPUs of this kind; 1 for a CPU host.")
    memory_bytes: int = Field(ge=1, description="Bytes of one device, or of the host for `cpu`.")


class PreflightConfig(StageConfig):
    """Judge a training stage's data, settings and memory, and train a few steps of it if asked."""

    stage: Literal["preflight"] = Field("preflight", description="Kind of the stage.")
    target: Annotated[SftConfig | DpoConfig | GrpoConfig, Field(discriminator="stage")]
    hosts: list[HostMemory] = Field(
        default_factory=list,
        description="Memory that the estimate is held against; by default that of the host it runs on.",
    )
    shown_rows: int = Field(3, ge=0, le=100, description="Rows to show with their loss tokens marked.")
    probe_steps: int = Field(
        0, ge=0, le=100, description="Optimizer steps to train and time; 10 give a useful estimate."
    )
    price_per_hour: float | None = Field(
        None, gt=0, le=1e6, description="Price of the host for an hour, in any currency."
    )
