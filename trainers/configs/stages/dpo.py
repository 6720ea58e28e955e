"""Config of the `dpo` stage: train on pairs of a preferred and a rejected completion."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.backends.choice import PortableTrainingConfig
from trainers.configs.backends.mlx_limits import list_mlx_obstacles
from trainers.configs.training import MaxLength


class DpoLoss(StrEnum):
    """Loss function. All but `sft` compare with the reference, which is the model before this stage."""

    sigmoid = "sigmoid"  # DPO, arXiv:2305.18290
    sigmoid_norm = "sigmoid_norm"  # The same on means over tokens, so that length has no effect.
    hinge = "hinge"  # SLiC, arXiv:2305.10425
    ipo = "ipo"  # arXiv:2310.12036; beta is its tau.
    exo_pair = "exo_pair"  # arXiv:2402.00856
    nca_pair = "nca_pair"  # arXiv:2402.05369
    robust = "robust"  # For labels that may be flipped, arXiv:2403.00409
    bco_pair = "bco_pair"  # arXiv:2404.04656
    sppo_hard = "sppo_hard"  # arXiv:2405.00675
    aot = "aot"  # Compares the sorted scores of a micro-batch, arXiv:2406.05882
    aot_unpaired = "aot_unpaired"  # The same for completions of different prompts.
    apo_zero = "apo_zero"  # For chosen completions better than the model's own, arXiv:2408.06266
    apo_down = "apo_down"  # For chosen completions worse than the model's own.
    discopop = "discopop"  # arXiv:2406.08414
    sft = "sft"  # Cross entropy of the chosen completion: prevents its probability from falling.

    @property
    def smooths(self) -> bool:
        """Whether label smoothing has an effect on this loss."""
        return self in {DpoLoss.robust, DpoLoss.exo_pair, DpoLoss.aot, DpoLoss.aot_unpaired}

    @property
    def has_mlx(self) -> bool:
        """Whether MLX computes this loss."""
        of_each_pair = {DpoLoss.sigmoid, DpoLoss.sigmoid_norm, DpoLoss.hinge, DpoLoss.ipo}
        return self in of_each_pair | {DpoLoss.apo_zero, DpoLoss.apo_down, DpoLoss.sft}

    @property
    def depends_on_micro_batch(self) -> bool:
        """Whether the loss of a pair depends on the others of its micro-batch."""
        return self in {DpoLoss.aot, DpoLoss.aot_unpaired}


Weight = Annotated[float, Field(gt=0, le=100)]


class DpoConfig(PortableTrainingConfig):
    """Direct preference optimization. The reference is the stage's base model, including its adapter.

    The default learning rate is TRL's 1e-6 for full fine-tuning and ten times that for LoRA, which is best
    across sizes and losses (Schulman and others, "LoRA Without Regret", 2025).
    """

    default_learning_rates: ClassVar[dict[str, float]] = {"lora": 1e-5, "full": 1e-6}
    disables_dropout: ClassVar[bool] = True

    stage: Literal["dpo"] = Field("dpo", description="Kind of the stage.")
    max_length: MaxLength = 1024
    losses: dict[DpoLoss, Weight] = Field(
        default_factory=lambda: {DpoLoss.sigmoid: 1.0},
        min_length=1,
        description="Weight of each loss in the sum, such as `{sigmoid: 1, sft: 0.5}`.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        le=1000,
        description="Strength of the pull towards the reference; usually 0.01 to 0.5.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Assumed share of pairs with a wrong label; for robust, exo_pair, aot and aot_unpaired.",
    )
    precompute_reference: bool = Field(
        False,
        description="Compute the reference's log-probabilities once before training, which saves memory and "
        "time. MLX always does.",
    )

    @property
    def micro_batch_losses(self) -> list[str]:
        """See `TrainingConfig`."""
        return [loss.value for loss in self.losses if loss.depends_on_micro_batch]

    @property
    def node_obstacles(self) -> list[str]:
        """Also what the first process alone computes and caches on its host."""
        cached = ["precompute_reference keeps its results on one host; set it to false"]
        return [*super().node_obstacles, *(cached if self.precompute_reference else [])]

    @property
    def mlx_obstacles(self) -> list[str]:
        """See `TrainingConfig`."""
        lacking = [loss.value for loss in self.losses if not loss.has_mlx]
        have = ", ".join(loss.value for loss in DpoLoss if loss.has_mlx)
        named = f"losses has {' and '.join(lacking)}, and MLX has {have}; use one of them, or queue cuda"
        return [*list_mlx_obstacles(self), *([named] if lacking else [])]

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        if DpoLoss.exo_pair in self.losses and self.label_smoothing == 0:
            raise ValueError("the loss exo_pair needs a label_smoothing above 0; its paper uses 0.001")
        if self.label_smoothing and not any(loss.smooths for loss in self.losses):
            raise ValueError(
                f"label_smoothing {self.label_smoothing} has no effect on the losses "
                f"{', '.join(self.losses)}; it is for robust, exo_pair, aot and aot_unpaired"
            )
        return self
