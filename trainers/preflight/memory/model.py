"""The device memory of a training stage, calculated from the sizes of its model.

The terms are what torch keeps: weights; gradients and the optimizer's state of the trained parameters; the
activations of each layer for the backward pass (`activations`); the tiles of logits of TRL's loss; and the KV
cache of generation. Constants without a formula are measured by tests/benchmarks/trainers/memory_estimate.py.
"""

from typing import Final

from trainers.configs.engines import EngineOptions
from trainers.configs.on_policy import EngineSampledConfig, GenerationBackend, OnPolicyConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.training import FullTuning, Optimizer, Parallelism, TrainingConfig
from trainers.preflight.memory.activations import PassFormat, count_activation_bytes
from trainers.preflight.memory.shape import BF16_BYTES, FP32_BYTES, MemorySettings, ModelShape

ADAMW_BYTES: Final = 8  # Two moments in fp32.
# Two moments in 8 bits, and for each an fp32 scale of 256 weights.
ADAMW_8BIT_BYTES: Final = 2 * (1 + 4 / 256)
# 4 bits per weight and one scale per 64 weights: 32 bits, or 8 bits with double quantization (plus a second
# scale of 32 bits per 256 scales).
NF4_BYTES: Final = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}
# TRL's loss computes the logits of this many tokens and vocabulary entries at a time. On a GPU a kernel holds
# one bf16 buffer of that size; the 8 fp32 buffers of torch's operations on a CPU were counted.
TILE_TOKENS: Final = 4096
TILE_VOCABULARY: Final = 32768
# Layers of which FSDP2 or ZeRO-3 holds all weights at once.
GATHERED_LAYERS: Final = 2
TILE_BYTES: Final = {True: BF16_BYTES, False: 8 * FP32_BYTES}
# The share of a device's memory that is usable; fragmentation, kernels and libraries need the rest.
USABLE_SHARE: Final = 0.9
# The memory of a program before it loads a model.
PROGRAM_BYTES: Final = {"cpu": 600 << 20, "mlx": 1 << 30, "cuda": 1 << 30}
# All processes of vLLM on a CPU, before the weights and the KV cache.
VLLM_CPU_BYTES: Final = 2 << 30


def count_memory_parts(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    tokens: int,
    passes: PassFormat,
) -> dict[str, int]:
    """Return the bytes on one device by purpose; `tokens` is the length of the longest sequence."""
    sequences = settings.micro_batch_size * (2 if isinstance(config, DpoConfig) else 1)
    width = passes.width
    parts = {
        "weights": _weight_bytes(config, shape, settings, width),
        "gradients": _gradient_bytes(config, shape, settings),
        "optimizer": int(count_optimizer_bytes(config, shape)) // _shard_count(settings, "optimizer"),
        "activations": count_activation_bytes(config, shape, settings, sequences, tokens, passes),
        "logits": _logit_bytes(config, shape, sequences * tokens, passes.is_bf16),
    }
    if _needs_reference(config):
        parts["reference"] = shape.parameters * FP32_BYTES // _shard_count(settings, "weights")
    if shape.teacher_parameters:
        # Only DeepSpeed shards a model that is not trained.
        shards = settings.devices if settings.parallelism is Parallelism.zero3 else 1
        parts["teacher"] = shape.teacher_parameters * width // shards
    if isinstance(config, OnPolicyConfig) and not has_engine(config):
        parts["kv_cache"] = _kv_cache_bytes(config, shape, settings, tokens, width)
    return parts


def _trained_parameters(config: TrainingConfig, shape: ModelShape) -> int:
    if isinstance(config.tuning, FullTuning):
        return shape.parameters - shape.frozen_parameters
    return shape.adapter_parameters


def _shard_count(settings: MemorySettings, part: str) -> int:
    """Return over how many devices a part is sharded."""
    sharded = {
        Parallelism.fsdp2: ("weights", "gradients", "optimizer"),
        Parallelism.zero2: ("gradients", "optimizer"),
        Parallelism.zero3: ("weights", "gradients", "optimizer"),
    }
    return settings.devices if part in sharded.get(settings.parallelism, ()) else 1


def _weight_bytes(config: TrainingConfig, shape: ModelShape, settings: MemorySettings, width: int) -> int:
    base = shape.parameters * _stored_bytes(config, settings, width)
    base += _gathered_bytes(config, shape, settings, width)
    if isinstance(config.tuning, FullTuning):
        return int(base)
    adapter = shape.adapter_parameters * FP32_BYTES
    if settings.quantized:
        linear = shape.linear_parameters * NF4_BYTES[config.tuning.double_quantization]
        base += (linear - shape.linear_parameters * width) / _shard_count(settings, "weights")
    return int(base) + adapter


def _stored_bytes(config: TrainingConfig, settings: MemorySettings, width: int) -> float:
    """Return the bytes per weight that a device holds all the time."""
    is_full = isinstance(config.tuning, FullTuning)
    shards = _shard_count(settings, "weights")
    if not is_full:
        return width / shards
    if settings.parallelism in (Parallelism.zero2, Parallelism.zero3):
        # DeepSpeed trains in the format of the passes, and keeps an fp32 copy of its share of the weights.
        return width / shards + FP32_BYTES / settings.devices
    return FP32_BYTES / shards


def _gathered_bytes(config: TrainingConfig, shape: ModelShape, settings: MemorySettings, width: int) -> float:
    """Return the bytes of weights in the format of the passes that exist only while they are used."""
    if settings.parallelism in (Parallelism.fsdp2, Parallelism.zero3):
        # The layer that is computed, the one that is fetched meanwhile, and the embeddings.
        linear: float = width
        if settings.quantized and not isinstance(config.tuning, FullTuning):
            linear = NF4_BYTES[config.tuning.double_quantization]
        return (
            shape.linear_parameters * linear * GATHERED_LAYERS / shape.layers + shape.other_parameters * width
        )
    casts = width == BF16_BYTES and settings.parallelism is not Parallelism.zero2
    if isinstance(config.tuning, FullTuning) and casts:
        # Autocast caches a bf16 copy of each linear layer's weight until the end of the forward pass.
        return shape.linear_parameters * BF16_BYTES
    return 0


def _gradient_bytes(config: TrainingConfig, shape: ModelShape, settings: MemorySettings) -> int:
    # DDP copies gradients into the buckets that it reduces.
    copies = 2 if settings.parallelism is Parallelism.ddp else 1
    return copies * _trained_parameters(config, shape) * FP32_BYTES // _shard_count(settings, "gradients")


def count_optimizer_bytes(config: TrainingConfig, shape: ModelShape) -> float:
    """Return the bytes of the optimizer's state of all trained weights."""
    trained = _trained_parameters(config, shape)
    if config.optimizer is Optimizer.adafactor:
        # Two vectors for each matrix.
        return trained * 2 * FP32_BYTES / shape.hidden
    return trained * (ADAMW_BYTES if config.optimizer is Optimizer.adamw else ADAMW_8BIT_BYTES)


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
    if not isinstance(config, EngineSampledConfig) or not has_engine(config):
        return {}
    if config.generation is GenerationBackend.vllm and device == "cuda":
        return {"engine": int(config.vllm_memory_share * memory_bytes)}
    weights = shape.parameters * (BF16_BYTES if is_bf16 else FP32_BYTES)
    if config.generation is GenerationBackend.vllm:
        return {"engine": weights + VLLM_CPU_BYTES + (EngineOptions().cpu_cache_gib << 30)}
    return {"engine": weights + PROGRAM_BYTES[device]}


def has_engine(config: TrainingConfig) -> bool:
    """Return whether an engine generates the completions of a stage."""
    return isinstance(config, EngineSampledConfig) and config.generation.engine is not None


def _kv_cache_bytes(
    config: OnPolicyConfig, shape: ModelShape, settings: MemorySettings, tokens: int, width: int
) -> int:
    """Return the bytes of keys and values of all completions that a step generates on this device."""
    completions = config.batch_size // settings.devices
    return 2 * completions * tokens * shape.layers * shape.key_value * width
