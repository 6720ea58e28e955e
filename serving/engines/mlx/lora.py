"""PEFT's LoRA and DoRA adapters on MLX's linear layers: several are loaded, one is used at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from serving.engines.decoding.adapters import AdapterNotLoadable
from trainers.mlx.adapter_files import AdapterNotConvertible, scale_of, split_peft_key, unsupported_setting
from trainers.mlx.adapters import dense_weight
from trainers.modeling.model_files import ADAPTER_WEIGHTS


@dataclass
class AdapterSelection:
    """The adapter that the next forward pass uses; all adapted layers of a model share it."""

    adapter: str | None = None


@dataclass(frozen=True)
class LoraUpdate:
    """The update of one layer by one adapter: a (in, r), b (r, out).

    `magnitude_scale` (out) is DoRA's magnitude divided by the norm of the updated weight.
    """

    a: Any
    b: Any
    scale: float
    magnitude_scale: Any = None


class AdaptedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer, quantized or not, with the update of the selected adapter."""

    def __init__(self, linear: nn.Module, selection: AdapterSelection) -> None:
        super().__init__()
        self.linear = linear
        # A leading underscore keeps these out of the layer's parameters.
        self._selection = selection
        self._updates: dict[str | None, LoraUpdate] = {}

    def __call__(self, x: Any) -> Any:
        """Map x (..., in) to (..., out)."""
        base_output = self.linear(x)
        lora = self._updates.get(self._selection.adapter)
        if lora is None:
            return base_output
        update = lora.scale * ((x @ lora.a) @ lora.b)
        if lora.magnitude_scale is not None:
            # DoRA scales the whole weight, without the bias: y = m/|W + sBA| (W + sBA) x + bias.
            bias = self.linear.bias if "bias" in self.linear else 0
            update = (lora.magnitude_scale - 1) * (base_output - bias) + lora.magnitude_scale * update
        return base_output + update.astype(base_output.dtype)


def attach(network: nn.Module, selection: AdapterSelection, adapter: str, path: str, config: Any) -> None:
    """Add an adapter to its layers. Raises AdapterNotLoadable before any layer is changed."""
    check_settings(path, config)
    layers = dict(network.named_modules())
    updates = {
        name: make_update(find_linear(path, layers, name), parts, scale_of(name, config))
        for name, parts in read_parts(path).items()
    }
    mx.eval(
        [
            [update.a, update.b, *([] if update.magnitude_scale is None else [update.magnitude_scale])]
            for update in updates.values()
        ]
    )
    for name, update in updates.items():
        layer = layers[name]
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer, selection)
            parent, _, own_name = name.rpartition(".")
            setattr(layers[parent], own_name, layer)
        layer._updates[adapter] = update


def detach(network: nn.Module, adapter: str) -> None:
    """Free an adapter's weights."""
    for layer in network.modules():
        if isinstance(layer, AdaptedLinear):
            layer._updates.pop(adapter, None)
    mx.clear_cache()


def check_settings(path: str, config: Any) -> None:
    """Raise AdapterNotLoadable for a setting that could change completions but is not supported here."""
    setting = unsupported_setting(config)
    if setting is not None:
        raise AdapterNotLoadable(
            path, f"the engine mlx does not support its {setting}; merge the adapter, or use hf."
        )


def read_parts(path: str) -> dict[str, dict[str, Any]]:
    """Read the adapter's weights by module and part: lora_a (in, r), lora_b (r, out), m (out)."""
    parts: dict[str, dict[str, Any]] = {}
    weights: Any = mx.load(str(Path(path) / ADAPTER_WEIGHTS))
    for key, weight in weights.items():
        try:
            module, part = split_peft_key(key)
        except AdapterNotConvertible as error:
            raise AdapterNotLoadable(
                path, f"the engine mlx does not support its weight {key}; use hf."
            ) from error
        parts.setdefault(module, {})[part] = weight.T
    return parts


def find_linear(path: str, layers: dict[str, nn.Module], name: str) -> nn.Module:
    """Return the linear layer of mlx-lm's model that has the name of a module in transformers."""
    layer = layers.get(name)
    if isinstance(layer, AdaptedLinear):
        layer = layer.linear
    if not isinstance(layer, nn.Linear | nn.QuantizedLinear):
        found = "no such layer" if layer is None else f"a {type(layer).__name__}"
        raise AdapterNotLoadable(
            path,
            f"it adapts {name}, but mlx-lm's model has {found} there; merge the adapter, or use hf.",
        )
    return layer


def make_update(linear: nn.Module, parts: dict[str, Any], scale: float) -> LoraUpdate:
    """Create a layer's update from an adapter's weights."""
    a, b = parts["lora_a"], parts["lora_b"]
    if "m" not in parts:
        return LoraUpdate(a, b, scale)
    updated = dense_weight(linear).astype(mx.float32) + scale * (a @ b).T
    return LoraUpdate(a, b, scale, parts["m"] / mx.linalg.norm(updated, axis=1))
