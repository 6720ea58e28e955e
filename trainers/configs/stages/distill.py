"""Config of the `distill` stage: a student learns its teacher's distribution on its own completions."""

from typing import ClassVar, Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, ModelRef
from trainers.configs.on_policy import OnPolicyConfig


class DistillConfig(OnPolicyConfig):
    """On-policy distillation (Agarwal et al., 2024, arXiv:2306.13649).

    Each step samples completions from the student, and moves the student's distribution of every next token
    towards the teacher's. Only the prompts of the dataset are read. The default learning rate is TRL's 1e-6
    for full fine-tuning and ten times that for LoRA, as for DPO.
    """

    default_learning_rates: ClassVar[dict[str, float]] = {"lora": 1e-5, "full": 1e-6}

    stage: Literal["distill"] = Field("distill", description="Kind of the stage.")
    teacher: ModelRef = Field(
        description="The model to learn from, named like `base`. It needs the tokenizer of the student, and "
        "is frozen."
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=MAX_COUNT,
        description="Prompts per optimizer step over all devices, with one completion each.",
    )
    beta: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Divergence to minimize: 1 is the reverse KL divergence, with which the student keeps to "
        "the teacher's likely tokens; 0 is the forward one, with which it covers all of them; between them "
        "is the generalized Jensen-Shannon divergence.",
    )
