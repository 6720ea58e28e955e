"""The sizes of a decoder's layers, read from its modules: configs name them differently, or vary by layer."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from trainers.modeling.multimodal.encoders import text_modules
from trainers.preflight.memory.shape import GatedDeltaShape

# Configs name the width of the MLP differently.
INTERMEDIATE_SIZES = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


def list_decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the layers of the text model; empty for an architecture whose layers are of no common class."""
    return [
        module for module in text_modules(model).values() if isinstance(module, GradientCheckpointingLayer)
    ]


def measure_layer_sizes(model: PreTrainedModel, layers: list[torch.nn.Module]) -> dict[str, Any]:
    """Return the sizes of attention and MLP: means over the layers that have them, as they may differ.

    Layers that use the keys and values of an earlier one have none of their own.
    """
    text = model.config.get_text_config()
    outputs = [layer for layer in layers if hasattr(getattr(layer, "self_attn", None), "o_proj")]
    keys = [getattr(layer.self_attn, "k_proj", None) for layer in outputs]
    sizes: dict[str, Any] = {"intermediate": _measure_mlp(layers) or _configured_intermediate(text)}
    if any(key is not None for key in keys):
        sizes["query"] = _mean(layer.self_attn.o_proj.in_features for layer in outputs)
        sizes["key_value"] = _mean(key.out_features if key is not None else 0 for key in keys)
    else:
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        sizes["query"] = width * text.num_attention_heads
        sizes["key_value"] = width * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    return sizes


def measure_gated_delta(layers: list[torch.nn.Module]) -> GatedDeltaShape | None:
    """Return the sizes of linear attention by the gated delta rule, as in Qwen 3.5; None without it."""
    found = [layer.linear_attn for layer in layers if hasattr(layer, "linear_attn")]
    if not found:
        return None
    first: Any = found[0]
    return GatedDeltaShape(
        layers=len(found),
        heads=first.num_v_heads,
        key_width=first.head_k_dim,
        value_width=first.head_v_dim,
        key_heads=first.num_k_heads,
    )


def measure_per_layer_input(layers: list[torch.nn.Module]) -> int:
    """Return the width of the embedding that each layer adds to its output, as in Gemma 4; 0 without one."""
    gate = getattr(layers[0], "per_layer_input_gate", None) if layers else None
    return 0 if gate is None else int(gate.out_features)


def gates_attention(layers: list[torch.nn.Module]) -> bool:
    """Return whether queries have a gate for the output of attention, as in Qwen 3.5."""
    found = [layer.self_attn for layer in layers if hasattr(getattr(layer, "self_attn", None), "q_proj")]
    first: Any = found[0] if found else None
    return bool(
        first is not None
        and hasattr(first, "o_proj")
        and first.q_proj.out_features == 2 * first.o_proj.in_features
    )


def _measure_mlp(layers: list[torch.nn.Module]) -> int:
    gates = [
        gate
        for layer in layers
        if (gate := getattr(getattr(layer, "mlp", None), "gate_proj", None)) is not None
    ]
    is_plain = len(gates) == len(layers) and all(isinstance(gate, torch.nn.Linear) for gate in gates)
    return _mean(gate.out_features for gate in gates) if gates and is_plain else 0


def _configured_intermediate(text: PreTrainedConfig) -> int:
    found = next((size for name in INTERMEDIATE_SIZES if (size := getattr(text, name, None))), None)
    # GPT-2's default, where the config leaves it open.
    return int(found or 4 * text.hidden_size)


def _mean(sizes: Iterable[int]) -> int:
    return round(fmean(sizes))
