"""The sizes of a model and the settings of a stage, from which its memory is calculated."""

import dataclasses
from dataclasses import dataclass
from typing import Final

from trainers.configs.training import Parallelism

FP32_BYTES: Final = 4
BF16_BYTES: Final = 2


@dataclass(frozen=True)
class GatedDeltaShape:
    """Sizes of linear attention by the gated delta rule; widths are those of a head."""

    layers: int
    """Layers that have it in place of attention."""
    heads: int
    key_heads: int
    key_width: int
    value_width: int


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
    norms: int = 2
    """Norms of the hidden state in a layer."""
    normalizes_queries: bool = False
    """Whether queries and keys pass through norms of their own."""
    has_gated_mlp: bool = True
    gates_attention: bool = False
    """Whether the output of attention is multiplied by a gate."""
    normalizes_values: bool = False
    per_layer_input: int = 0
    """Width of an embedding that each layer adds to its output."""
    gated_delta: GatedDeltaShape | None = None
    frozen_parameters: int = 0
    """Parameters that full tuning does not train."""
    teacher_parameters: int = 0

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters


@dataclass(frozen=True)
class MemorySettings:
    """The settings of a stage that determine its memory and that a plan may change."""

    micro_batch_size: int
    recomputed_every: int | None
    """Every how many layers one is recomputed in the backward pass: 1 for all; None for none."""
    quantized: bool
    parallelism: Parallelism
    devices: int

    def replace(self, **values: object) -> "MemorySettings":
        """Return a copy with some values replaced."""
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]
