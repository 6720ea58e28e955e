"""Config of the `preflight` stage: checks of another stage before it starts."""

from typing import Annotated, Literal

from pydantic import Field

from trainers.configs.base import Config, NonEmpty, Queue, StageConfig
from trainers.configs.stages.deploy import DeployConfig
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.configs.stages.export import ExportConfig
from trainers.configs.stages.generate import GenerateConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.harness.lm_eval import LmEvalConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.stages.merge import MergeConfig
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import ChatTemplateName


class HostMemory(Config):
    """Memory that a worker offers to one run."""

    worker: NonEmpty = Field(description="Name of the worker.")
    device: Literal["cpu", "mlx", "cuda"] = Field("cpu", description="Kind of device.")
    devices: int = Field(1, ge=1, le=1024, description="Number of GPUs; 1 for a host without a GPU.")
    memory_bytes: int = Field(
        ge=1, description="Memory of one device, or of the host for `cpu` and `mlx`, in bytes."
    )


class PreflightConfig(StageConfig):
    """Check a stage's data and settings; of a training stage also its memory, and optionally its time."""

    stage: Literal["preflight"] = Field("preflight", description="Kind of the stage.")
    target: Annotated[
        SftConfig
        | DpoConfig
        | KtoConfig
        | GrpoConfig
        | DistillConfig
        | EvaluateConfig
        | GenerateConfig
        | LmEvalConfig
        | MergeConfig
        | ExportConfig
        | DeployConfig,
        Field(discriminator="stage", description="The stage to check."),
    ]
    model_template: ChatTemplateName | None = Field(
        None, description="Template with which earlier stages of the job train the model of the target."
    )
    hosts: list[HostMemory] = Field(
        default_factory=list,
        description="Hosts whose memory the estimate is compared with. Defaults to the host of the run.",
    )
    shown_rows: int = Field(
        3, ge=0, le=100, description="Number of rows to preview with their loss tokens marked."
    )
    probe_steps: int = Field(
        0, ge=0, le=100, description="Optimizer steps to train and time; 10 give a useful estimate."
    )
    price_per_hour: float | None = Field(
        None, gt=0, le=1e6, description="Price of the host per hour, in any currency."
    )

    @property
    def capability(self) -> str | None:
        """What computes the rewards of the stage, which are tried on completions."""
        return self.target.capability if isinstance(self.target, GrpoConfig) else None

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """Those of the stage that it checks."""
        return self.target.suitable_queues
