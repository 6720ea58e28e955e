"""The activations that autograd keeps for the backward pass.

The formulas count the tensors that torch's `saved_tensors_hooks` sees in a decoder layer with RMSNorm,
grouped-query attention and an MLP; tests compare them with several architectures.
"""

import math
from dataclasses import dataclass
from typing import Final

from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.preflight.memory.shape import (
    BF16_BYTES,
    FP32_BYTES,
    GatedDeltaShape,
    MemorySettings,
    ModelShape,
)

LINEARS: Final = 7  # Four of attention, three of the MLP.
BOOL_BYTES: Final = 1
# Of the gated delta rule.
CHUNK_TOKENS: Final = 64


@dataclass(frozen=True)
class PassFormat:
    """How the forward pass computes: its number format, and its attention."""

    is_bf16: bool
    is_eager: bool
    """Whether attention keeps the scores of all pairs of tokens."""
    is_masked: bool
    """Whether torch's attention gets a mask, for which it repeats keys and values for each query head."""
    on_gpu: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return BF16_BYTES if self.is_bf16 else FP32_BYTES


def count_activation_bytes(
    config: TrainingConfig,
    shape: ModelShape,
    settings: MemorySettings,
    sequences: int,
    tokens: int,
    passes: PassFormat,
) -> int:
    """Return the bytes of the layers' activations: those kept, the inputs of the others, and one in work."""
    layer = sequences * count_layer_bytes(config, shape, tokens, passes)
    largest = layer
    if (delta := shape.gated_delta) is not None:
        recurrent = sequences * count_gated_delta_bytes(config, shape, delta, tokens, passes)
        largest = max(layer, recurrent)
        # Layers are recomputed evenly, so that a mean describes both those kept and those not.
        layer = (recurrent * delta.layers + layer * (shape.layers - delta.layers)) // shape.layers
    # With full tuning, embeddings are fp32, and so are their sums with the outputs of all layers.
    stream = passes.width if isinstance(config.tuning, LoraTuning) else FP32_BYTES
    inputs = sequences * tokens * shape.hidden * stream
    recomputed = (
        0 if settings.recomputed_every is None else math.ceil(shape.layers / settings.recomputed_every)
    )
    # The gradients of an MLP. A layer that is recomputed exists once more, unless the layers above it, which
    # the backward pass has freed by then, are kept ones.
    in_work = sequences * tokens * 3 * shape.intermediate * passes.width
    if settings.recomputed_every is not None and (shape.layers - 1) % settings.recomputed_every == 0:
        in_work += largest
    return (shape.layers - recomputed) * layer + recomputed * inputs + in_work


def count_layer_bytes(config: TrainingConfig, shape: ModelShape, tokens: int, passes: PassFormat) -> int:
    """Return the bytes that autograd keeps of one layer with attention for one sequence of these tokens."""
    is_lora, width = isinstance(config.tuning, LoraTuning), passes.width
    norms = 0
    if shape.normalizes_queries:
        norms += (shape.query + shape.key_value) * FP32_BYTES * (1 if is_lora else 2)
    if shape.normalizes_values:
        norms += shape.key_value * FP32_BYTES
    keys_and_values = 2 * (shape.query if passes.is_masked or passes.is_eager else shape.key_value)
    attention = (2 * shape.query + keys_and_values) * width + shape.heads * FP32_BYTES
    if shape.gates_attention:
        attention += 3 * shape.query * width
    kept = tokens * (_count_common_bytes(config, shape, passes) + norms + attention)
    if passes.is_eager:
        # The softmax is computed in fp32, and converted for the product with the values.
        kept += shape.heads * tokens * tokens * (FP32_BYTES + (width if passes.is_bf16 else 0))
    elif passes.is_masked:
        kept += tokens * tokens * width
    return int(kept)


def count_gated_delta_bytes(
    config: TrainingConfig, shape: ModelShape, delta: GatedDeltaShape, tokens: int, passes: PassFormat
) -> int:
    """Return the bytes of one layer with the gated delta rule in torch's operations, in chunks of 64 tokens.

    The factors were fitted to measurements. The kernels of flash-linear-attention keep less.
    """
    width = passes.width
    queries, keys, values = (
        heads * size
        for heads, size in (
            (delta.heads, delta.key_width),
            (delta.key_heads, delta.key_width),
            (delta.heads, delta.value_width),
        )
    )
    # The convolution's input and output, the gate, and its product with the normalized output.
    kept = (4 * keys + 5 * values) * width
    # Inside of the rule all is fp32: queries and keys repeated for each head, scores within a chunk, and a
    # state for each chunk.
    kept += (8 if passes.is_bf16 else 11) * queries * FP32_BYTES + 7 * values * FP32_BYTES
    kept += (15 if passes.is_bf16 else 20) * delta.heads * CHUNK_TOKENS
    kept += 2 * delta.heads * delta.key_width * delta.value_width * FP32_BYTES // CHUNK_TOKENS
    return int(tokens * (kept + _count_common_bytes(config, shape, passes)))


def _count_common_bytes(config: TrainingConfig, shape: ModelShape, passes: PassFormat) -> int:
    """Return the bytes per token of the parts of a layer besides attention."""
    is_lora, width = isinstance(config.tuning, LoraTuning), passes.width
    # RMSNorm converts its input to fp32. If its weight is trained, it keeps the normalized input too.
    kept = shape.norms * shape.hidden * FP32_BYTES * (1 if is_lora else 2)
    # Linear layers that share an input keep it once; autocast converts an fp32 input anew for each.
    kept += (2 if is_lora or not passes.is_bf16 else 5) * shape.hidden * width
    # The gate before and after its activation, the up projection and their product.
    kept += (4 if shape.has_gated_mlp else 2) * shape.intermediate * width
    if shape.per_layer_input:
        # The input of its gate; the gate before and after activation, the embedding and their product.
        kept += (shape.hidden + 4 * shape.per_layer_input) * width
    if isinstance(config.tuning, LoraTuning):
        kept += _count_adapter_bytes(config.tuning, shape, passes)
    return kept


def _count_adapter_bytes(tuning: LoraTuning, shape: ModelShape, passes: PassFormat) -> int:
    """Return the bytes per token of a layer's adapters: what A returns, and the inputs that are dropped."""
    width = passes.width
    kept = LINEARS * tuning.rank * width
    if tuning.dropout:
        # Every adapter draws its own mask, which is in fp32 on a CPU.
        mask = BOOL_BYTES if passes.on_gpu else FP32_BYTES
        dropped = 5 * shape.hidden + shape.query + shape.intermediate
        kept += dropped * (width + mask) - (2 * shape.hidden + shape.intermediate) * width
    if tuning.dora:
        # The adapter's output and the base's are both scaled, and kept for it.
        outputs = shape.query + 2 * shape.key_value + 2 * shape.hidden + 2 * shape.intermediate
        kept += 2 * outputs * width
        # PEFT converts the input of each adapter; only those of queries and the gate were kept already.
        kept += 4 * shape.hidden * width if passes.is_bf16 and not tuning.dropout else 0
    return kept
