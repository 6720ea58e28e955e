"""What the configs of all training stages have in common: model, data, optimizer, batch, saving."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, Config, DatasetRef, ModelRef, StageConfig
from trainers.configs.presets import apply_presets


class Precision(StrEnum):
    """Number format of the forward and backward pass."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class LearningRateSchedule(StrEnum):
    """How the learning rate moves after warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Quantization(StrEnum):
    """How the frozen base is kept in memory while an adapter is trained on it."""

    nf4 = "nf4"


class Attention(StrEnum):
    """Which implementation computes attention; `auto` is the fastest that is right and installed."""

    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    flash_attention_3 = "flash_attention_3"


class Parallelism(StrEnum):
    """How several GPUs share one run."""

    auto = "auto"
    ddp = "ddp"  # A whole model on each.
    fsdp2 = "fsdp2"  # Weights, gradients and optimizer state are sharded, by torch.
    zero2 = "zero2"  # Gradients and optimizer state are sharded, by DeepSpeed.
    zero3 = "zero3"  # Weights too, by DeepSpeed.


class PreflightMode(StrEnum):
    """What a training stage does with what it finds before it starts."""

    check = "check"  # Errors end the run, warnings become events.
    warn = "warn"  # All become events.
    off = "off"  # Nothing is looked for.


class LoraTuning(Config):
    """Train low-rank adapters and leave the base frozen (Hu et al., 2021, arXiv:2106.09685)."""

    method: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=1024, description="Rank of the update matrices.")
    alpha: float = Field(32, gt=0, description="Scale of the update, applied as alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the layers to adapt, or every linear layer but the head."
    )
    dora: bool = Field(
        False, description="Learn the size of each update apart from its direction (arXiv:2402.09353)."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (arXiv:2312.03732).")
    quantization: Quantization | None = Field(
        None, description="`nf4` keeps the frozen base in 4 bits (QLoRA, arXiv:2305.14314)."
    )
    double_quantization: bool = Field(
        True, description="With `nf4`: quantise the scales too, which saves 0.4 bits a weight."
    )


class FullTuning(Config):
    """Train all weights."""

    method: Literal["full"] = "full"


Tuning = Annotated[LoraTuning | FullTuning, Field(discriminator="method")]

MaxLength = Annotated[
    int,
    Field(ge=8, le=MAX_COUNT, description="Tokens per row; longer rows are truncated at the end."),
]


class TrainingConfig(StageConfig):
    """Fields that every training stage has."""

    default_learning_rates: ClassVar[dict[str, float]]

    preset: str | list[str] | None = Field(
        None, description="Names of presets, whose fields hold wherever this stage names no others."
    )
    base: ModelRef
    dataset: DatasetRef
    held_out: list[DatasetRef] = Field(
        default_factory=list,
        max_length=20,
        description="Datasets whose rows must not be trained on; in a job, those of its evaluate stages too.",
    )
    preflight: PreflightMode = Field(
        PreflightMode.check, description="What is done with faults that are found before training starts."
    )
    tuning: Tuning = Field(default_factory=LoraTuning)

    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the dataset, unless max_steps is set.")
    max_steps: int | None = Field(None, ge=1, le=MAX_COUNT, description="Optimizer steps; overrides epochs.")
    batch_size: int = Field(16, ge=1, le=MAX_COUNT, description="Rows per optimizer step over all devices.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows per device and forward pass; divides batch_size, and is at most 8 by default.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate; the default follows the kind of tuning, ten times higher for LoRA.",
    )
    schedule: LearningRateSchedule = LearningRateSchedule.linear
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps spent on warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    precision: Precision = Field(
        Precision.auto, description="`auto` is bf16 where the device has it, else fp32."
    )
    attention: Attention = Field(
        Attention.auto,
        description=(
            "`auto` is the fastest that is right and installed. Where it keeps rows apart (flash attention, "
            "or `auto` on a CPU), `sft` lays them end to end; else it pads them."
        ),
    )
    activation_checkpointing: bool | None = Field(
        None,
        description="Compute activations again in the backward pass; by default only where memory needs it.",
    )
    devices: int = Field(1, ge=1, le=1024, description="GPUs to train on, all of one host.")
    parallelism: Parallelism = Field(
        Parallelism.auto, description="How several devices share the work; `auto` is ddp."
    )
    seed: int = Field(42, ge=0, lt=2**32)

    log_every_steps: int = Field(10, ge=1, le=MAX_COUNT, description="Steps between two metric events.")
    save_every_steps: int = Field(100, ge=1, le=MAX_COUNT, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="Checkpoints kept on the worker's disk.")

    @property
    def rows_per_step(self) -> int:
        """Rows of the dataset that an optimizer step takes."""
        return self.batch_size

    @model_validator(mode="before")
    @classmethod
    def _resolve_defaults(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        values = apply_presets(cls.model_fields["stage"].default, values)
        if isinstance(values.get("tuning"), dict):
            values["tuning"] = {"method": "lora", **values["tuning"]}
        if values.get("learning_rate") is None:
            tuning = values.get("tuning") or {}
            method = (
                tuning.get("method", "lora")
                if isinstance(tuning, dict)
                else getattr(tuning, "method", "lora")
            )
            # Any JSON may stand here: what is no name of a method is told by its own field.
            values["learning_rate"] = (
                cls.default_learning_rates.get(method) if isinstance(method, str) else None
            )
        if values.get("micro_batch_size") is None:
            batch_size = values.get("batch_size", cls.model_fields["batch_size"].default)
            if isinstance(batch_size, int) and batch_size > 0:
                values["micro_batch_size"] = next(
                    n for n in range(min(8, batch_size), 0, -1) if batch_size % n == 0
                )
        return values

    @model_validator(mode="after")
    def _head_is_not_adapted(self) -> Self:
        # TRL multiplies by the head's own weights, for the loss over a few tokens at once.
        if isinstance(self.tuning, LoraTuning) and "lm_head" in self.tuning.target_modules:
            raise ValueError(
                "tuning.target_modules may not hold lm_head: its adapter would not be trained here"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        assert self.micro_batch_size is not None
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self
