"""The device memory of a training stage, calculated from the sizes of its model.

The terms are what torch keeps: weights; gradients and AdamW's two moments of the trained parameters; the
activations of each layer for the backward pass (after Korthikanti et al., 2022, arXiv:2205.05198, for layers
with RMSNorm, grouped-query attention and a gated MLP); the tiles of logits of TRL's loss; and the KV cache of
generation. Constants without a formula were measured by tests/benchmarks/trainers/memory_estimate.py.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

from trainers.configs.engines import EngineOptions
from trainers.configs.on_policy import EngineSampledConfig, GenerationBackend, OnPolicyConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.training import FullTuning, LoraTuning, Parallelism, TrainingConfig

FP32_BYTES: Final = 4
BF16_BYTES: Final = 2
ADAMW_BYTES: Final = 8  # Two moments in fp32.
# 4 bits per weight and one scale per 64 weights: 32 bits, or 8 bits with double quantization (plus a second
# scale of 32 bits per 256 scales).
NF4_BYTES: Final = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}
# TRL's loss computes the logits of this many tokens and vocabulary entries at a time. On a GPU a kernel holds
# one bf16 buffer of that size; the 8 fp32 buffers of torch's operations on a CPU were counted.
TILE_TOKENS: Final = 4096
TILE_VOCABULARY: Final = 32768
TILE_BYTES: Final = {True: BF16_BYTES, False: 8 * FP32_BYTES}
# The share of a device's memory that is usable; fragmentation, kernels and libraries need the rest.
USABLE_SHARE: Final = 0.9
# The memory of a program before it loads a model.
PROGRAM_BYTES: Final = {"cpu": 600 << 20, "mlx": 1 << 30, "cuda": 1 << 30}
# All processes of vLLM on a CPU, before the weights and the KV cache.
VLLM_CPU_BYTES: Final = 2 << 30


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in elements; `query` and `key_value` are over all heads."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    query: int
    key_value: int
    vocabulary: int
    linear_parameters: int
    other_parameters: int
    adapter_parameters: int
    has_fused_attention: bool
    """Whether an implementation exists that keeps no scores of token pairs."""
    teacher_parameters: int = 0

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters


@dataclass(frozen=True)
class MemorySettings:
    """The settings of a stage that determine its memory and that a plan may change."""

    micro_batch_size: int
    checkpointing: bool
    quantized: bool
    parallelism: Parallelism
    devices: int

    def replace(self, **values: object) -> "MemorySettings":
        """Return a copy with some values replaced."""
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]


def count_memory_parts(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    tokens: int,
    *,
    is_bf16: bool,
    eager: bool,
) -> dict[str, int]:
    """Return the bytes on one device by purpose; `tokens` is the length of the longest sequence."""
    sequences = settings.micro_batch_size * (2 if isinstance(config, DpoConfig) else 1)
    width = BF16_BYTES if is_bf16 else FP32_BYTES
    parts = {
        "weights": _weight_bytes(config, shape, settings, width),
        "gradients": _trained_parameters(config, shape) * FP32_BYTES // _shard_count(settings, "gradients"),
        "optimizer": _trained_parameters(config, shape) * ADAMW_BYTES // _shard_count(settings, "optimizer"),
        "activations": _activation_bytes(config, shape, settings, sequences, tokens, width, eager),
        "logits": _logit_bytes(config, shape, sequences * tokens, is_bf16),
    }
    if _needs_reference(config):
        parts["reference"] = shape.parameters * FP32_BYTES // _shard_count(settings, "weights")
    if shape.teacher_parameters:
        # Only DeepSpeed shards a model that is not trained.
        shards = settings.devices if settings.parallelism is Parallelism.zero3 else 1
        parts["teacher"] = shape.teacher_parameters * width // shards
    if isinstance(config, OnPolicyConfig) and not _has_engine(config):
        parts["kv_cache"] = _kv_cache_bytes(config, shape, settings, tokens, width)
    return parts


def _trained_parameters(config: TrainingConfig, shape: ModelShape) -> int:
    return shape.parameters if isinstance(config.tuning, FullTuning) else shape.adapter_parameters


def _shard_count(settings: MemorySettings, part: str) -> int:
    """Return over how many devices a part is sharded."""
    sharded = {
        Parallelism.fsdp2: ("weights", "gradients", "optimizer"),
        Parallelism.zero2: ("gradients", "optimizer"),
        Parallelism.zero3: ("weights", "gradients", "optimizer"),
    }
    return settings.devices if part in sharded.get(settings.parallelism, ()) else 1


def _weight_bytes(config: TrainingConfig, shape: ModelShape, settings: MemorySettings, width: int) -> int:
    shards = _shard_count(settings, "weights")
    if isinstance(config.tuning, FullTuning):
        # Autocast caches a bf16 copy of each weight from its first use until the end of the step.
        copies = BF16_BYTES if width == BF16_BYTES else 0
        return shape.parameters * FP32_BYTES // shards + shape.parameters * copies
    adapter = shape.adapter_parameters * FP32_BYTES
    if settings.quantized:
        linear = shape.linear_parameters * NF4_BYTES[config.tuning.double_quantization]
        return int(linear + shape.other_parameters * width) // shards + adapter
    return shape.parameters * width // shards + adapter


def _activation_bytes(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    sequences: int,
    tokens: int,
    width: int,
    eager: bool,
) -> int:
    """Return the bytes that the backward pass keeps: all layers; with checkpointing, inputs and one layer."""
    count = sequences * tokens
    # Each of the two norms keeps its input and the normalized input in fp32, and its output. Attention keeps
    # queries and keys before and after rotation, values and outputs once. The MLP keeps the gate before and
    # after its activation, the up projection, and their product.
    norms = 2 * shape.hidden * (2 * FP32_BYTES + width)
    attention = (3 * shape.query + 3 * shape.key_value + shape.hidden) * width
    layer = count * (norms + attention + 4 * shape.intermediate * width)
    if isinstance(config.tuning, LoraTuning):
        layer += count * adapter_activation_bytes(config.tuning, shape, width)
    if eager:
        layer += sequences * tokens * tokens * (shape.query // max(1, shape.key_value)) * width * 2
    inputs = count * shape.hidden * width
    if settings.checkpointing:
        return shape.layers * inputs + layer
    return shape.layers * (layer + 2 * inputs)


def adapter_activation_bytes(tuning: LoraTuning, shape: ModelShape, width: int) -> int:
    """Return bytes per token and layer: the adapter's outputs, and the rank-sized outputs of A."""
    outputs = 2 * shape.query + 2 * shape.key_value + 2 * shape.intermediate + shape.hidden
    linears = 7  # Four of attention, three of the MLP.
    dropped = linears * shape.hidden * width if tuning.dropout else 0
    # Measured: kept are the adapter's output, the base's, and their sum; with DoRA also a scaled output.
    copies = 2 if tuning.dora else 1
    return linears * tuning.rank * FP32_BYTES + dropped + copies * outputs * width


def _logit_bytes(config: TrainingConfig, shape: ModelShape, tokens: int, is_bf16: bool) -> int:
    """Return the bytes of the loss if every token carries loss."""
    tile = min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_VOCABULARY) * TILE_BYTES[is_bf16]
    head = shape.vocabulary * shape.hidden * FP32_BYTES if isinstance(config.tuning, FullTuning) else 0
    return tile + tokens * shape.hidden * FP32_BYTES + head


def _needs_reference(config: TrainingConfig) -> bool:
    if not isinstance(config.tuning, FullTuning):
        return False
    if isinstance(config, DpoConfig):
        # MLX computes the reference before training.
        return not config.precompute_reference and not config.uses_mlx
    if isinstance(config, KtoConfig):
        return True
    return isinstance(config, GrpoConfig) and config.beta > 0


def engine_bytes(
    config: TrainingConfig, shape: ModelShape, device: str, memory_bytes: int, *, is_bf16: bool
) -> dict[str, int]:
    """Return the bytes of the engine that generates the completions; none if the trainer itself does.

    On a GPU, vLLM takes its share of the whole memory, whatever the model needs.
    """
    if not isinstance(config, EngineSampledConfig) or not _has_engine(config):
        return {}
    if config.generation is GenerationBackend.vllm and device == "cuda":
        return {"engine": int(config.vllm_memory_share * memory_bytes)}
    weights = shape.parameters * (BF16_BYTES if is_bf16 else FP32_BYTES)
    if config.generation is GenerationBackend.vllm:
        return {"engine": weights + VLLM_CPU_BYTES + (EngineOptions().cpu_cache_gib << 30)}
    return {"engine": weights + PROGRAM_BYTES[device]}


def _has_engine(config: OnPolicyConfig) -> bool:
    return isinstance(config, EngineSampledConfig) and config.generation.engine is not None


def _kv_cache_bytes(
    config: OnPolicyConfig, shape: ModelShape, settings: MemorySettings, tokens: int, width: int
) -> int:
    """Return the bytes of keys and values of all completions that a step generates on this device."""
    completions = config.batch_size // settings.devices
    return 2 * completions * tokens * shape.layers * shape.key_value * width
