"""What a training stage needs of a device's memory, by arithmetic from the shape of its model.

The sums follow what torch keeps: weights, gradients and AdamW's two moments for all that is trained, what the
backward pass needs of each layer (after Korthikanti and others, 2022, arXiv:2205.05198, for layers with
RMSNorm, grouped keys and a gated MLP), the tiles of logits of TRL's loss, and the KV cache of generation.
Figures that no formula gives were measured by tests/benchmarks/memory_estimate.py.
"""

from dataclasses import dataclass, replace
from typing import Final

from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.training import FullTuning, LoraTuning, Parallelism, TrainingConfig

FP32_BYTES: Final = 4
BF16_BYTES: Final = 2
ADAMW_BYTES: Final = 8  # Two moments in fp32.
# 4 bits a weight, and a scale of 8 bits for 64 of them once the scales are quantised too, of 32 bits before.
NF4_BYTES: Final = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}
# TRL's loss projects so many tokens onto so many words of the vocabulary at once, with kernels in one buffer
# of bf16; in fp32 it is taken for the torch operations of a CPU, whose buffers were counted.
TILE_TOKENS: Final = 4096
TILE_WORDS: Final = 32768
TILE_BYTES: Final = {True: BF16_BYTES, False: 8 * FP32_BYTES}
# Of each device's memory: the rest is for fragments, kernels and libraries.
USABLE_SHARE: Final = 0.9
# What a program takes before it has loaded a model.
PROGRAM_BYTES: Final = {"cpu": 600 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in elements."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocabulary: int
    linear_parameters: int
    other_parameters: int
    adapter_parameters: int

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters


@dataclass(frozen=True)
class MemorySettings:
    """What of a stage decides over its memory, and what a plan may change."""

    micro_batch_size: int
    checkpointing: bool
    quantized: bool
    parallelism: Parallelism
    devices: int

    def changed(self, **values: object) -> "MemorySettings":
        """The same with some values changed."""
        return replace(self, **values)  # type: ignore[arg-type]


def count_memory_parts(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    tokens: int,
    *,
    is_bf16: bool,
    eager: bool,
) -> dict[str, int]:
    """Bytes on one device by what they are for, where the longest sequence has so many tokens."""
    sequences = settings.micro_batch_size * (2 if isinstance(config, DpoConfig) else 1)
    width = BF16_BYTES if is_bf16 else FP32_BYTES
    parts = {
        "weights": _weights(config, shape, settings, width),
        "gradients": _trained(config, shape) * FP32_BYTES // _shards(settings, "gradients"),
        "optimizer": _trained(config, shape) * ADAMW_BYTES // _shards(settings, "optimizer"),
        "activations": _activations(config, shape, settings, sequences, tokens, width, eager),
        "logits": _logits(config, shape, sequences * tokens, is_bf16),
    }
    if _needs_reference(config):
        parts["reference"] = shape.parameters * FP32_BYTES // _shards(settings, "weights")
    if isinstance(config, GrpoConfig):
        parts["kv_cache"] = _kv_cache(config, shape, settings, tokens, width)
    return parts


def _trained(config: TrainingConfig, shape: ModelShape) -> int:
    return shape.parameters if isinstance(config.tuning, FullTuning) else shape.adapter_parameters


def _shards(settings: MemorySettings, part: str) -> int:
    """Among how many devices a part is divided."""
    sharded = {
        Parallelism.fsdp2: ("weights", "gradients", "optimizer"),
        Parallelism.zero2: ("gradients", "optimizer"),
        Parallelism.zero3: ("weights", "gradients", "optimizer"),
    }
    return settings.devices if part in sharded.get(settings.parallelism, ()) else 1


def _weights(config: TrainingConfig, shape: ModelShape, settings: MemorySettings, width: int) -> int:
    shards = _shards(settings, "weights")
    if isinstance(config.tuning, FullTuning):
        # Autocast keeps a second copy of each weight in bf16 from its first use to the end of the step.
        copies = BF16_BYTES if width == BF16_BYTES else 0
        return shape.parameters * FP32_BYTES // shards + shape.parameters * copies
    adapter = shape.adapter_parameters * FP32_BYTES
    if settings.quantized:
        linear = shape.linear_parameters * NF4_BYTES[config.tuning.double_quantization]
        return int(linear + shape.other_parameters * width) // shards + adapter
    return shape.parameters * width // shards + adapter


def _activations(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    sequences: int,
    tokens: int,
    width: int,
    eager: bool,
) -> int:
    """What the backward pass needs: of every layer, or its input alone and of one layer everything."""
    count = sequences * tokens
    # Both norms keep their input and its normalised form in fp32, and their output; queries and keys are kept
    # before and after rotation, values and the output of attention once; of the MLP the gate before and
    # after its activation, the other half, and their product.
    norms = 2 * shape.hidden * (2 * FP32_BYTES + width)
    attention = (3 * shape.query + 3 * shape.key_value + shape.hidden) * width
    layer = count * (norms + attention + 4 * shape.intermediate * width)
    if isinstance(config.tuning, LoraTuning):
        layer += count * _adapter_activations(config.tuning, shape, width)
    if eager:
        layer += sequences * tokens * tokens * (shape.query // max(1, shape.key_value)) * width * 2
    inputs = count * shape.hidden * width
    if settings.checkpointing:
        return shape.layers * inputs + layer
    return shape.layers * (layer + 2 * inputs)


def _adapter_activations(tuning: LoraTuning, shape: ModelShape, width: int) -> int:
    """Bytes a token and layer: the adapter's output beside the base's, and what lies between A and B."""
    outputs = 2 * shape.query + 2 * shape.key_value + 2 * shape.intermediate + shape.hidden
    linears = 7
    dropped = linears * shape.hidden * width if tuning.dropout else 0
    # Measured: the outputs of base and adapter stand beside their sum, and DoRA keeps a scaled one too.
    copies = 2 if tuning.dora else 1
    return linears * tuning.rank * FP32_BYTES + dropped + copies * outputs * width


def _logits(config: TrainingConfig, shape: ModelShape, tokens: int, is_bf16: bool) -> int:
    """Of the loss, were every token to carry some."""
    tile = min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS) * TILE_BYTES[is_bf16]
    head = shape.vocabulary * shape.hidden * FP32_BYTES if isinstance(config.tuning, FullTuning) else 0
    return tile + tokens * shape.hidden * FP32_BYTES + head


def _needs_reference(config: TrainingConfig) -> bool:
    if not isinstance(config.tuning, FullTuning):
        return False
    if isinstance(config, DpoConfig):
        return not config.precompute_reference
    return isinstance(config, GrpoConfig) and config.beta > 0


def _kv_cache(
    config: GrpoConfig, shape: ModelShape, settings: MemorySettings, tokens: int, width: int
) -> int:
    """Keys and values of all answers that a step generates at once on this device."""
    answers = config.batch_size // settings.devices
    return 2 * answers * tokens * shape.layers * shape.key_value * width
