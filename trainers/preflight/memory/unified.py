"""The memory of a training stage with MLX, which a Mac's GPU shares with everything else.

MLX has no mixed precision, materializes the scores of attention in training, and computes the logits of all
tokens at once. Constants without a formula were measured by tests/benchmarks/trainers/mlx_memory.py on MLX's
CPU device; on an Apple GPU they have not been measured.
"""

from typing import Final

from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.training import FullTuning, LoraTuning, TrainingConfig
from trainers.preflight.memory.model import ADAMW_BYTES
from trainers.preflight.memory.shape import BF16_BYTES, FP32_BYTES, MemorySettings, ModelShape

GROUP_WEIGHTS: Final = 64
# 4 bits per weight, and a scale and a bias in bf16 for each group.
QUANTIZED_BF16_BYTES: Final = 0.5 + 2 * BF16_BYTES / GROUP_WEIGHTS
# Copies of the scores of each pair of tokens and head, and bytes for each logit: the logits in both formats,
# their fp32 gradient, and the intermediate values of the cross entropy.
SCORE_COPIES: Final = 2
LOGIT_BYTES: Final = {True: 22, False: 18}
# Blocks whose activations exist at once while they are recomputed.
RECOMPUTED_BLOCKS: Final = 2
# By default macOS lets the GPU use two thirds of the memory of a small Mac, three quarters of a larger one.
SMALL_MAC_BYTES: Final = 36 * 10**9
SMALL_MAC_SHARE: Final = 2 / 3
LARGE_MAC_SHARE: Final = 3 / 4


def unified_share(memory_bytes: int) -> float:
    """Return the share of a Mac's memory that its GPU may use."""
    return SMALL_MAC_SHARE if memory_bytes < SMALL_MAC_BYTES else LARGE_MAC_SHARE


def least_unified_bytes(tuning: LoraTuning | FullTuning, parameters: float) -> float:
    """Return the bytes of the weights on a GPU, with gradients and moments if all are trained."""
    if isinstance(tuning, FullTuning):
        return parameters * (2 * FP32_BYTES + ADAMW_BYTES)
    return parameters * (QUANTIZED_BF16_BYTES if tuning.quantization is not None else BF16_BYTES)


def count_unified_parts(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, tokens: int, *, is_bf16: bool
) -> dict[str, int]:
    """Return the bytes by purpose; `tokens` is the length of the longest sequence."""
    sequences = settings.micro_batch_size * (2 if isinstance(config, DpoConfig) else 1)
    width = BF16_BYTES if is_bf16 else FP32_BYTES
    is_full = isinstance(config.tuning, FullTuning)
    trained = shape.parameters if is_full else shape.adapter_parameters
    # While micro-batches are accumulated, their sum exists next to the newest gradient.
    gradients = 1 if settings.micro_batch_size == config.batch_size else 2
    return {
        "weights": _weight_bytes(config, shape, settings, width),
        "gradients": trained * FP32_BYTES * gradients,
        "optimizer": trained * ADAMW_BYTES,
        "activations": _activation_bytes(config, shape, settings, sequences, tokens, width),
        "logits": sequences * tokens * shape.vocabulary * LOGIT_BYTES[is_bf16],
    }


def _weight_bytes(config: TrainingConfig, shape: ModelShape, settings: MemorySettings, width: int) -> int:
    if isinstance(config.tuning, FullTuning):
        return shape.parameters * FP32_BYTES
    adapter = shape.adapter_parameters * FP32_BYTES
    if not settings.quantized:
        return shape.parameters * width + adapter
    # Each group has a scale and a bias.
    linear = shape.linear_parameters * (0.5 + 2 * width / GROUP_WEIGHTS)
    return int(linear) + shape.other_parameters * width + adapter


def _activation_bytes(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    sequences: int,
    tokens: int,
    width: int,
) -> int:
    """Return the bytes that the backward pass keeps: all blocks, or their inputs and those recomputed."""
    count = sequences * tokens
    # Norms keep input and output; attention keeps queries and keys before and after rotation, values and
    # outputs; the MLP keeps the gate before and after its activation, the up projection, and their product.
    norms = 4 * shape.hidden
    attention = 3 * shape.query + 3 * shape.key_value + shape.hidden
    block = count * (norms + attention + 4 * shape.intermediate) * width
    if isinstance(config.tuning, LoraTuning):
        block += count * _adapter_bytes(config.tuning, shape, width)
    block += SCORE_COPIES * sequences * shape.heads * tokens * tokens * width
    inputs = count * shape.hidden * width
    if settings.recomputed_every is not None:
        return shape.layers * inputs + RECOMPUTED_BLOCKS * block
    return shape.layers * (block + 2 * inputs)


def _adapter_bytes(tuning: LoraTuning, shape: ModelShape, width: int) -> int:
    """Return bytes per token and layer: the adapter's outputs, and the rank-sized outputs of A."""
    outputs = 2 * shape.query + 2 * shape.key_value + 2 * shape.intermediate + shape.hidden
    linears = 7  # Four of attention, three of the MLP.
    dropped = linears * shape.hidden * width if tuning.dropout else 0
    # Measured: kept are the adapter's output, the base's, and their sum; with DoRA also a scaled output.
    copies = 2 if tuning.dora else 1
    return linears * tuning.rank * FP32_BYTES + dropped + copies * outputs * width
