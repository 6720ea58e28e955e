"""PEFT's LoRA and DoRA adapters on mlx's linear layers, several beside each other and one at a time."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from serving.engines.decoding.adapters import ADAPTER_WEIGHTS, AdapterNotLoadable

# What is honoured here, or does not matter once an adapter is trained; all else must be as PEFT's defaults.
UNDERSTOOD = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("inference_mode", "lora_dropout", "init_lora_weights", "eva_config", "runtime_config"),
}
KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?"
)


@dataclass
class Selection:
    """Which adapter the next forward pass uses; all adapted layers of a model look here."""

    adapter: str | None = None


@dataclass(frozen=True)
class LowRank:
    """What one adapter adds to one layer: a (in, r), b (r, out); DoRA's share (out) of the whole."""

    a: Any
    b: Any
    scale: float
    share: Any = None


class AdaptedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer, quantised or not, to which the selected adapter is added."""

    def __init__(self, linear: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.linear = linear
        # A leading underscore keeps these out of the layer's parameters.
        self._selection = selection
        self._added: dict[str | None, LowRank] = {}

    def __call__(self, x: Any) -> Any:
        whole = self.linear(x)
        added = self._added.get(self._selection.adapter)
        if added is None:
            return whole
        update = added.scale * ((x @ added.a) @ added.b)
        if added.share is not None:
            bias = self.linear.bias if "bias" in self.linear else 0
            update = (added.share - 1) * (whole - bias) + added.share * update
        return whole + update.astype(whole.dtype)


def attach(network: nn.Module, selection: Selection, adapter: str, path: str, config: Any) -> None:
    """Add an adapter to the layers that it names; raises AdapterNotLoadable before any is changed."""
    refuse_not_understood(path, config)
    layers = dict(network.named_modules())
    added = {
        name: low_rank(linear_of(path, layers, name), parts, scale_of(name, config))
        for name, parts in read_parts(path).items()
    }
    mx.eval([[part.a, part.b, *([] if part.share is None else [part.share])] for part in added.values()])
    for name, part in added.items():
        layer = layers[name]
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer, selection)
            parent, _, own_name = name.rpartition(".")
            setattr(layers[parent], own_name, layer)
        layer._added[adapter] = part


def detach(network: nn.Module, adapter: str) -> None:
    """Free an adapter's weights."""
    for layer in network.modules():
        if isinstance(layer, AdaptedLinear):
            layer._added.pop(adapter, None)
    mx.clear_cache()


def refuse_not_understood(path: str, config: Any) -> None:
    """Whatever could change the answer and is not honoured is refused, never ignored."""
    plain = LoraConfig()
    for field in fields(LoraConfig):
        value = getattr(config, field.name)
        if field.name not in UNDERSTOOD and value and value != getattr(plain, field.name):
            raise AdapterNotLoadable(
                path, f"the engine mlx does not understand {field.name} {value!r}; merge it, or use hf."
            )


def read_parts(path: str) -> dict[str, dict[str, Any]]:
    """The adapter's weights by module, then by part."""
    parts: dict[str, dict[str, Any]] = {}
    weights: Any = mx.load(str(Path(path) / ADAPTER_WEIGHTS))
    for key, weight in weights.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise AdapterNotLoadable(path, f"the engine mlx does not understand its weight {key}; use hf.")
        parts.setdefault(match["module"], {})[match["part"]] = weight
    return parts


def linear_of(path: str, layers: dict[str, nn.Module], name: str) -> nn.Module:
    """The linear layer that a module of transformers is in mlx-lm's model."""
    layer = layers.get(name)
    if isinstance(layer, AdaptedLinear):
        layer = layer.linear
    if not isinstance(layer, nn.Linear | nn.QuantizedLinear):
        kind = "has none" if layer is None else f"has a {type(layer).__name__}"
        raise AdapterNotLoadable(path, f"it adapts {name}, where mlx-lm's model {kind}; merge it, or use hf.")
    return layer


def scale_of(name: str, config: Any) -> float:
    """By how much the update counts: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def low_rank(linear: nn.Module, parts: dict[str, Any], scale: float) -> LowRank:
    """The update of a layer; DoRA's magnitudes are held against the norm of the updated weights (out, in)."""
    a, b = parts["lora_A"].T, parts["lora_B"].T
    if "lora_magnitude_vector" not in parts:
        return LowRank(a, b, scale)
    updated = whole_weight(linear).astype(mx.float32) + scale * (a @ b).T
    return LowRank(a, b, scale, parts["lora_magnitude_vector"] / mx.linalg.norm(updated, axis=1))


def whole_weight(linear: nn.Module) -> Any:
    """The layer's weight (out, in), unpacked if it is quantised."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )
