"""Config of the `sft` stage: supervised fine-tuning with LoRA or of all weights."""

from typing import ClassVar, Literal

from trainers.configs.training import MaxLength, TrainingConfig


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on a dataset's completions; prompts carry no loss.

    The default learning rate is 2e-4 for LoRA and 2e-5 for all weights.
    """

    default_learning_rates: ClassVar[dict[str, float]] = {"lora": 2e-4, "full": 2e-5}

    stage: Literal["sft"] = "sft"
    max_length: MaxLength = 1024
