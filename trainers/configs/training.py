"""Fields of all training stages: model, data, optimizer, batch, checkpoints."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.configs.backends.kernels import KernelField, KernelPackage
from trainers.configs.base import (
    MAX_COUNT,
    Config,
    DatasetRef,
    ModelRef,
    Queue,
    Seed,
    StageConfig,
    TrainingData,
)
from trainers.configs.parsing.tagged_objects import expect_object
from trainers.configs.presets import apply_presets

MAX_HELD_OUT = 20
MAX_NODES = 1024


class Precision(StrEnum):
    """Number format of the forward and backward pass."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"  # For GPUs before Ampere, which only emulate bf16; the loss is scaled to keep gradients.

    @property
    def has_16_bits(self) -> bool:
        """Whether the passes are in 16 bits."""
        return self in (Precision.bf16, Precision.fp16)


class LearningRateSchedule(StrEnum):
    """Change of the learning rate after warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Quantization(StrEnum):
    """Format of the frozen base in memory while an adapter is trained on it."""

    four_bit = "4bit"  # That of the backend: nf4 with torch, affine with a group of 64 with MLX.
    nf4 = "nf4"


class Attention(StrEnum):
    """Implementation of attention; `auto` is the fastest that is correct for the model and installed."""

    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"  # That of torch, with a mask where rows are padded.
    varlen = "varlen"  # Torch's kernel for rows of different lengths, without padding or a mask.
    flash_attention_2 = "flash_attention_2"
    flash_attention_3 = "flash_attention_3"


class Optimizer(StrEnum):
    """Rule of the updates, and the state that it keeps of each trained weight."""

    adamw = "adamw"  # Two moments in fp32: 8 bytes.
    adamw_8bit = "adamw_8bit"  # Two moments in 8 bits (bitsandbytes): 2 bytes.
    paged_adamw_8bit = "paged_adamw_8bit"  # The same, moved to the host's memory where the GPU's is full.
    adafactor = "adafactor"  # The sums of squares of rows and columns: next to nothing.


class Parallelism(StrEnum):
    """The way in which several GPUs share one run."""

    auto = "auto"
    ddp = "ddp"  # Each has a full copy of the model.
    fsdp2 = "fsdp2"  # Torch shards weights, gradients and optimizer state.
    zero2 = "zero2"  # DeepSpeed shards gradients and optimizer state.
    zero3 = "zero3"  # DeepSpeed shards weights, gradients and optimizer state.


SHARDED_STATE = (Parallelism.fsdp2, Parallelism.zero2, Parallelism.zero3)


class PreflightMode(StrEnum):
    """Effect of the findings of the checks before training."""

    check = "check"  # Errors fail the run, warnings become events.
    warn = "warn"  # Errors and warnings become events.
    off = "off"  # The checks are skipped.


class ChatTemplateName(StrEnum):
    """A chat template of ours, for a base without one or in place of its own."""

    chatml = "chatml"
    qwen3 = "qwen3"  # ChatML with tools, tool calls and reasoning.
    llama3 = "llama3"
    gemma = "gemma"
    mistral = "mistral"
    phi3 = "phi3"
    transcript = "transcript"  # `User:` and `Assistant:`; it needs no special tokens.


TemplateField = Annotated[
    ChatTemplateName | None,
    Field(
        description=(
            "Chat template that renders conversations and is published with the model. By default the base's "
            "own, or that of its family. A base without either trains on rows of `prompt` and `completion` "
            "texts and of `text`, which need none. All but `transcript` need their special tokens in the "
            "tokenizer."
        )
    ),
]


class LoraTuning(Config):
    """Train low-rank adapters on a frozen base (Hu et al., 2021, arXiv:2106.09685)."""

    method: Literal["lora"] = Field("lora", description="Method of tuning.")
    rank: int = Field(16, ge=1, le=1024, description="Rank of the update matrices.")
    alpha: float = Field(32, gt=0, description="Scale of the update, applied as alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability on the adapter's input.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the layers to adapt, or every linear layer except the head."
    )
    dora: bool = Field(
        False,
        description="Learn the magnitude of each update separately from its direction (arXiv:2402.09353).",
    )
    rslora: bool = Field(False, description="Scale the update by alpha / sqrt(rank) (arXiv:2312.03732).")
    quantization: Quantization | None = Field(
        None,
        description="`4bit` stores the frozen base in 4 bits, in the format of the backend: nf4 (QLoRA, "
        "arXiv:2305.14314) with torch, affine with one scale and bias per 64 weights with MLX. `nf4` is for "
        "torch alone; null stores the base as it is.",
    )
    double_quantization: bool = Field(
        True, description="With nf4, quantize the scales too, which saves 0.4 bits per weight."
    )
    publish_dequantized_base: bool = Field(
        False,
        description="With `4bit` and MLX, also publish the base as whole weights that were rounded to 4 "
        "bits, and the adapter as one of that base, so that every engine computes what was trained. By "
        "default the adapter is one of the original base, and the difference is measured and stated.",
    )

    @model_validator(mode="after")
    def _check_quantization(self) -> Self:
        if self.publish_dequantized_base and self.quantization is not Quantization.four_bit:
            raise ValueError("publish_dequantized_base needs quantization 4bit; remove it, or set that")
        return self


class FullTuning(Config):
    """Train all weights."""

    method: Literal["full"] = Field("full", description="Method of tuning.")


Tuning = Annotated[
    LoraTuning | FullTuning, Field(discriminator="method"), expect_object("method", "lora", "full")
]

MaxLength = Annotated[
    int,
    Field(ge=8, le=MAX_COUNT, description="Maximum tokens of a row; longer rows are truncated at the end."),
]


def _null_is_auto(value: object) -> object:
    """Accept the null of configs that were stored before `auto` had its name."""
    return "auto" if value is None else value


class TrainingConfig(StageConfig):
    """Fields of every training stage."""

    default_learning_rates: ClassVar[dict[str, float]]
    disables_dropout: ClassVar[bool] = False
    """Whether training compares log-probabilities with a reference, which dropout would disturb."""

    preset: str | list[str] | None = Field(
        None,
        description="Names of presets, whose fields are the defaults of this stage; the last has precedence.",
    )
    base: ModelRef
    template: TemplateField = None
    dataset: TrainingData
    held_out: list[DatasetRef] = Field(
        default_factory=list,
        max_length=MAX_HELD_OUT,
        description="Datasets whose rows must not be trained on. A job adds those of its `evaluate` stages.",
    )
    preflight: PreflightMode = Field(
        PreflightMode.check, description="Effect of errors and warnings that the checks before training find."
    )
    tuning: Tuning = Field(default_factory=LoraTuning, description="LoRA, or full fine-tuning.")

    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the dataset; max_steps overrides it.")
    max_steps: int | None = Field(None, ge=1, le=MAX_COUNT, description="Optimizer steps; overrides epochs.")
    batch_size: int = Field(16, ge=1, le=MAX_COUNT, description="Rows per optimizer step over all devices.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows per device and forward pass; times devices, a divisor of batch_size. Defaults to "
        "the largest up to 8.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate. The default is ten times higher for LoRA than for full fine-tuning.",
    )
    schedule: LearningRateSchedule = Field(
        LearningRateSchedule.linear, description="Curve of the learning rate after warm-up."
    )
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises to its peak."
    )
    optimizer: Optimizer = Field(
        Optimizer.adamw,
        description="Rule of the updates, and the state that it keeps of each trained weight: 8 bytes with "
        "`adamw`, 2 with `adamw_8bit` and `paged_adamw_8bit` (bitsandbytes), almost none with `adafactor`.",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay of the optimizer.")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which gradients are clipped.")
    precision: Precision = Field(
        Precision.auto,
        description="Number format of the passes; `auto` is bf16 if the GPU computes it, fp16 on an older "
        "GPU that would emulate it, and fp32 on a CPU.",
    )
    attention: Attention = Field(
        Attention.auto,
        description=(
            "Implementation of attention; `auto` is the fastest that is correct for the model and installed. "
            "On a GPU since Ampere, in 16 bits, it is FlashAttention if a package is installed, else torch's "
            "own kernel `varlen`. With these, or `auto` on a CPU, `sft` batches rows without padding."
        ),
    )
    activation_checkpointing: Annotated[bool | Literal["auto"], BeforeValidator(_null_is_auto)] = Field(
        "auto",
        description="Recompute activations in the backward pass, which costs up to a third more time and "
        "changes no result. `auto` does so for as few layers as the free memory requires; true for all.",
    )
    compile: bool = Field(
        False,
        description="Let torch compile the layers of the model, which fuses norms, activations, positions "
        "and adapters. It takes some minutes at the start, and needs a C++ compiler on a CPU and Triton on a "
        "GPU.",
    )
    kernels: KernelField = KernelPackage.none
    devices: int = Field(1, ge=1, le=1024, description="Number of GPUs to train on, in each host.")
    nodes: int = Field(
        1,
        ge=1,
        le=MAX_NODES,
        description="Number of hosts to train on, each with `devices` GPUs; at most TUNESMITH_MAX_NODES. The "
        "run starts when as many workers of its queue are free at once.",
    )
    parallelism: Parallelism = Field(
        Parallelism.auto, description="How several GPUs share the run; `auto` is ddp."
    )
    seed: Seed = 42

    log_every_steps: int = Field(
        10, ge=1, le=MAX_COUNT, description="Optimizer steps between two metric events."
    )
    save_every_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Optimizer steps between two checkpoints; by default the time decides.",
    )
    save_every_minutes: float = Field(
        15,
        gt=0,
        le=1440,
        description="Minutes between two checkpoints; no effect with save_every_steps or save_every_epoch. "
        "The last step and a pause save one in any case.",
    )
    save_every_epoch: bool = Field(
        False,
        description="Save a checkpoint after each epoch instead, and keep it until it is stored: it is a "
        "result of the run, and not only a state to resume from. It has no effect with max_steps.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, le=1000, description="Number of checkpoints to keep on the worker's disk."
    )

    @property
    def device_count(self) -> int:
        """One process is started for each device."""
        return self.devices

    @property
    def publishes_base(self) -> bool:
        """Whether the stage publishes the base of its adapter too, rounded to 4 bits."""
        return isinstance(self.tuning, LoraTuning) and self.tuning.publish_dequantized_base

    @property
    def node_count(self) -> int:
        """See `StageConfig`."""
        return self.nodes

    @property
    def processes(self) -> int:
        """The processes of the run, on all of its hosts."""
        return self.devices * self.nodes

    @property
    def node_obstacles(self) -> list[str]:
        """Why several hosts cannot train it, each with what to do; empty if they can."""
        if self.parallelism in (Parallelism.zero2, Parallelism.zero3):
            return [f"parallelism {self.parallelism} saves checkpoints in parts on each host; use fsdp2"]
        return []

    @property
    def uses_mlx(self) -> bool:
        """Whether MLX trains, once the queue is known."""
        return False

    @property
    def mlx_obstacles(self) -> list[str]:
        """Why MLX cannot train it, each with what would be needed; empty if it can."""
        return [f"the stage {self.stage} has a program for torch alone; use queue cuda, or cpu"]

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """A GPU, else the CPU: most training programs do not use MLX."""
        return (Queue.cuda, Queue.cpu)

    @property
    def rows_per_step(self) -> int:
        """Number of rows of the dataset per optimizer step."""
        return self.batch_size

    @property
    def micro_batch_losses(self) -> list[str]:
        """Names of the losses that compare the rows of a micro-batch, so that its size changes them."""
        return []

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
            # The value may be any JSON: the validation of `tuning` reports an invalid method.
            values["learning_rate"] = (
                cls.default_learning_rates.get(method) if isinstance(method, str) else None
            )
        if values.get("micro_batch_size") is None:
            batch_size = values.get("batch_size", cls.model_fields["batch_size"].default)
            counts = batch_size, values.get("devices", 1), values.get("nodes", 1)
            if all(isinstance(count, int) and count > 0 for count in counts):
                # If they do not divide batch_size, `_check_fields` reports that.
                rows = batch_size // (counts[1] * counts[2]) or 1
                values["micro_batch_size"] = next(n for n in range(min(8, rows), 0, -1) if rows % n == 0)
        return values

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        if isinstance(self.dataset, list):
            names = [share.dataset for share in self.dataset]
            twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
            if twice is not None:
                name = repr(twice) if isinstance(twice, str) else f"the output of stage {twice.stage!r}"
                raise ValueError(f"{name} is listed twice; give it one entry, with more `rows` to repeat it")
        return self

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        # TRL computes the loss in chunks with the head's own weights, past any adapter.
        if isinstance(self.tuning, LoraTuning) and "lm_head" in self.tuning.target_modules:
            raise ValueError(
                "tuning.target_modules contains lm_head, whose adapter would not train; remove it"
            )
        if self.disables_dropout and isinstance(self.tuning, LoraTuning) and self.tuning.dropout:
            stage = type(self).model_fields["stage"].default
            raise ValueError(
                f"tuning.dropout {self.tuning.dropout:g} has no effect: {stage} disables dropout, since it "
                "compares log-probabilities with a reference; remove it"
            )
        if self.compile and self.kernels is not KernelPackage.none:
            raise ValueError(
                "compile is true and kernels is set, but torch fuses what it compiles, and cannot look into "
                "kernels; omit one of them"
            )
        if self.compile and self.parallelism in (Parallelism.zero2, Parallelism.zero3):
            raise ValueError(
                f"compile is not available with parallelism {self.parallelism}, whose hooks torch does not "
                "compile; use parallelism ddp or fsdp2, or omit compile"
            )
        if self.optimizer is not Optimizer.adamw and self.parallelism in SHARDED_STATE:
            # DeepSpeed flattens matrices, of which Adafactor needs rows and columns; bitsandbytes' kernels
            # know no sharded tensors.
            raise ValueError(
                f"optimizer {self.optimizer} cannot be sharded by parallelism {self.parallelism}; use "
                "optimizer adamw, whose state is sharded, or parallelism ddp"
            )
        assert self.micro_batch_size is not None
        devices = f"devices {self.devices}" + (f" times nodes {self.nodes}" if self.nodes > 1 else "")
        if self.batch_size % self.processes:
            lower = self.batch_size // self.processes * self.processes
            nearest = [str(size) for size in (lower, lower + self.processes) if size]
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of {devices}; every device "
                f"needs the same number of rows per step: set it to {' or '.join(nearest)}"
            )
        rows = self.batch_size // self.processes
        if rows % self.micro_batch_size:
            times = f" times {devices}" if self.processes > 1 else ""
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
                f"{times}; omit micro_batch_size, or set it to a divisor of {rows}"
            )
        return self

    @model_validator(mode="after")
    def _check_nodes(self) -> Self:
        if self.nodes > 1 and (obstacles := self.node_obstacles):
            raise ValueError(f"nodes is {self.nodes}, and {obstacles[0]}, or omit nodes")
        return self
