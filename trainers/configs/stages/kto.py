"""Config of the `kto` stage: train on completions that are labelled as good or bad."""

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from trainers.configs.training import MaxLength
from trainers.configs.validation import ValidatedTrainingConfig


class KtoLoss(StrEnum):
    """Loss function. Both compare with the reference, which is the model before this stage."""

    kto = "kto"  # arXiv:2402.01306
    apo_zero_unpaired = "apo_zero_unpaired"  # For completions better than the model's own, arXiv:2408.06266


class KtoConfig(ValidatedTrainingConfig):
    """Kahneman-Tversky optimization (Ethayarajh et al., 2024, arXiv:2402.01306), for rows without pairs.

    A row has one completion and a `label`, which is true for a good completion and false for a bad one. A
    preference pair counts as two rows. The reference is the stage's base model, including its adapter. The
    default learning rate is TRL's 1e-6 for full fine-tuning and ten times that for LoRA, as for DPO.
    """

    default_learning_rates: ClassVar[dict[str, float]] = {"lora": 1e-5, "full": 1e-6}
    disables_dropout: ClassVar[bool] = True

    stage: Literal["kto"] = Field("kto", description="Kind of the stage.")
    max_length: MaxLength = 1024
    loss: KtoLoss = Field(KtoLoss.kto, description="Loss function.")
    beta: float = Field(
        0.1,
        gt=0,
        le=1000,
        description="Strength of the pull towards the reference; usually 0.01 to 0.5.",
    )
    desirable_weight: float = Field(
        1.0, gt=0, le=100, description="Weight of the loss of good completions, for labels of unequal number."
    )
    undesirable_weight: float = Field(
        1.0, gt=0, le=100, description="Weight of the loss of bad completions, for labels of unequal number."
    )
