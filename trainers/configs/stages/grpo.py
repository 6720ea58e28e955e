"""Config of the `grpo` stage: reinforcement learning from rewards on the model's own completions."""

from enum import StrEnum
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT
from trainers.configs.engines import join_capabilities
from trainers.configs.on_policy import EngineSampledConfig
from trainers.configs.rewards import Rewards, rewards_capability
from trainers.configs.validation import ValidationConfig


class GrpoLoss(StrEnum):
    """The weighting of the tokens' losses."""

    grpo = "grpo"  # Mean over each completion, then over completions: favors short ones, arXiv:2402.03300
    dapo = "dapo"  # Mean over all tokens of the batch, arXiv:2503.14476
    dr_grpo = "dr_grpo"  # Sum divided by a constant, arXiv:2503.20783
    bnpo = "bnpo"  # Mean over the tokens of a micro-batch.
    cispo = "cispo"  # arXiv:2506.13585
    sapo = "sapo"  # arXiv:2511.20347
    luspo = "luspo"  # arXiv:2602.05261
    vespo = "vespo"  # arXiv:2602.10693


class RewardScale(StrEnum):
    """Standard deviation that rewards are divided by, after the mean of their group is subtracted."""

    group = "group"
    batch = "batch"
    none = "none"


class GrpoConfig(EngineSampledConfig, ValidationConfig):
    """Group relative policy optimization: several completions of each prompt, compared with each other.

    Each step generates new completions. The default learning rate is TRL's 1e-6 for full fine-tuning and ten
    times that for LoRA, as for DPO.
    """

    default_learning_rates: ClassVar[dict[str, float]] = {"lora": 1e-5, "full": 1e-6}

    stage: Literal["grpo"] = Field("grpo", description="Kind of the stage.")
    batch_size: int = Field(
        64,
        ge=2,
        le=MAX_COUNT,
        description="Completions per optimizer step over all devices; a multiple of num_generations.",
    )
    rewards: Rewards = Field(description="Rewards whose weighted sum scores a completion.")
    num_generations: int = Field(
        8, ge=2, le=1024, description="Completions of each prompt, which are compared with each other."
    )
    loss: GrpoLoss = Field(GrpoLoss.dapo, description="How the losses of tokens are combined.")
    beta: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight of the KL divergence from the base model; above 0 it costs another forward pass.",
    )
    scale_rewards: RewardScale = Field(
        RewardScale.group, description="Rows whose standard deviation scales the rewards."
    )
    mask_truncated_completions: bool = Field(
        False, description="Exclude truncated completions from the loss."
    )

    @property
    def capability(self) -> str | None:
        """The engine that generates completions, and the sandbox of graders in Python."""
        return join_capabilities([super().capability, rewards_capability(self.rewards)])

    @property
    def rows_per_step(self) -> int:
        """Number of prompts per optimizer step; each has `num_generations` completions."""
        return self.batch_size // self.num_generations

    @property
    def micro_batch_losses(self) -> list[str]:
        """See `TrainingConfig`: TRL divides by the tokens of the micro-batch."""
        return [self.loss.value] if self.loss is GrpoLoss.bnpo else []

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_generations {self.num_generations}"
            )
        return self
