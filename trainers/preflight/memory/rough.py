"""A rough estimate of a stage's memory on a GPU, from the number of parameters alone. Imports no torch."""

from typing import Final

from trainers.configs.on_policy import OnPolicyConfig
from trainers.configs.training import LoraTuning, Parallelism, TrainingConfig
from trainers.preflight.memory.activations import PassFormat
from trainers.preflight.memory.model import (
    PROGRAM_BYTES,
    USABLE_SHARE,
    count_memory_parts,
    engine_bytes,
    has_engine,
)
from trainers.preflight.memory.shape import MemorySettings, ModelShape

# Dense decoders of today: a layer has about 12 squares of the width, which is about 128 times the number of
# layers; Llama 3 8B has 32 layers of 4096.
LAYER_SQUARES: Final = 12
WIDTH_OF_LAYER: Final = 128
HEAD_WIDTH: Final = 128
VOCABULARY: Final = 128_000
GB: Final = 10**9


def explain_too_little_memory(
    config: TrainingConfig, parameters: float, tokens: float, memory_bytes: int
) -> str | None:
    """Return why a GPU with this memory is too small even if all activations are recomputed, or None.

    `tokens` is the usual length of a row, without a completion that the stage generates.
    """
    shape, length = _guess_shape(config, parameters), int(tokens)
    if isinstance(config, OnPolicyConfig):
        length += config.max_completion_length
    assert config.micro_batch_size is not None
    parallelism = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    settings = MemorySettings(
        micro_batch_size=config.micro_batch_size,
        recomputed_every=None if config.activation_checkpointing is False else 1,
        quantized=isinstance(config.tuning, LoraTuning) and config.tuning.quantization is not None,
        parallelism=parallelism if config.processes > 1 else Parallelism.auto,
        devices=config.processes,
    )
    is_bf16 = config.precision.has_16_bits or config.precision == "auto"
    passes = PassFormat(is_bf16=is_bf16, is_eager=False, is_masked=False, on_gpu=True)
    parts = count_memory_parts(config, shape, settings, length, passes)
    engine = engine_bytes(config, shape, "cuda", memory_bytes, is_bf16=is_bf16) if has_engine(config) else {}
    needed = sum(parts.values()) + sum(engine.values()) + PROGRAM_BYTES["cuda"]
    if needed <= USABLE_SHARE * memory_bytes:
        return None
    usable = USABLE_SHARE * memory_bytes / GB
    recomputed = ", although all activations are recomputed" if settings.recomputed_every else ""
    return (
        f"The stage needs about {needed / GB:.0f} GB of a GPU{recomputed}: about {parameters / 1e9:.2g} "
        f"billion parameters take {parts['weights'] / GB:.0f} GB, and {config.micro_batch_size} rows of "
        f"{length} tokens at once (micro_batch_size) the rest. Of a GPU with {memory_bytes / GB:.0f} GB, "
        f"{usable:.0f} GB are usable."
    )


def _guess_shape(config: TrainingConfig, parameters: float) -> ModelShape:
    """Return the sizes of a usual decoder with this many parameters."""
    layers = max(1, round((parameters / (LAYER_SQUARES * WIDTH_OF_LAYER**2)) ** (1 / 3)))
    hidden = max(HEAD_WIDTH, round((parameters / (LAYER_SQUARES * layers)) ** 0.5))
    inner, key_value = 7 * hidden // 2, hidden // 4
    tables = min(parameters / 2, 2.0 * VOCABULARY * hidden)
    adapted = layers * (4 * hidden + 2 * (hidden + key_value) + 3 * (hidden + inner))
    rank = config.tuning.rank if isinstance(config.tuning, LoraTuning) else 0
    return ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        heads=max(1, hidden // HEAD_WIDTH),
        query=hidden,
        key_value=key_value,
        vocabulary=VOCABULARY,
        linear_parameters=int(parameters - tables),
        other_parameters=int(tables),
        adapter_parameters=rank * adapted,
        has_fused_attention=True,
    )
