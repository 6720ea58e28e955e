"""Adapters of PEFT as trainable layers of mlx-lm, and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from peft import LoraConfig

from trainers.mlx.adapter_files import (
    AdapterNotConvertible,
    rank_of,
    read_lora_config,
    scale_of,
    split_peft_key,
)
from trainers.mlx.adapter_format import PEFT_PARTS, peft_key, target_modules
from trainers.modeling.model_files import ADAPTER_WEIGHTS

# The head: PEFT's "all-linear" leaves it out.
HEAD = "lm_head"


def linear_modules(network: nn.Module, targets: Iterable[str] | str) -> list[str]:
    """Return the names of the linear layers that PEFT would adapt, in the network's order.

    Args:
        network: A model of mlx-lm, quantized or not.
        targets: Names or their ends, or "all-linear" for all but the head.
    """
    names = [
        name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.QuantizedLinear)
    ]
    if targets == "all-linear":
        return sorted(name for name in names if name != HEAD)
    wanted = tuple(targets)
    return sorted(
        name for name in names if name.endswith(tuple(f".{end}" for end in wanted)) or name in wanted
    )


def add_adapter(network: nn.Module, config: LoraConfig, modules: Iterable[str]) -> None:
    """Freeze the network, and give these modules a new trainable adapter that changes nothing yet.

    Raises:
        AdapterNotConvertible: The network has no linear layer of a name.
    """
    layers = dict(network.named_modules())
    kind: Any = DoRALinear if config.use_dora else LoRALinear
    adapted = []
    for name in modules:
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | nn.QuantizedLinear):
            found = "no such layer" if layer is None else f"a {type(layer).__name__}"
            raise AdapterNotConvertible(
                f"The adapter is for {name}, but mlx-lm's model has {found} there.",
                "Use the backend torch, or merge the adapter into its base.",
            )
        rank, scale = rank_of(name, config), scale_of(name, config)
        adapted.append((name, kind.from_base(layer, r=rank, dropout=config.lora_dropout, scale=scale)))
    network.freeze()
    network.update_modules(tree_unflatten(adapted))


def load_adapter(network: nn.Module, folder: Path) -> LoraConfig:
    """Continue from an adapter of PEFT: its modules become trainable layers with its weights.

    Raises:
        AdapterNotConvertible: It has a setting or a weight that MLX lacks, or another base.
    """
    config = read_lora_config(folder)
    add_adapter(network, config, sorted({module for module, _ in _read_parts(folder)}))
    load_adapter_weights(network, folder)
    return config


def load_adapter_weights(network: nn.Module, folder: Path) -> None:
    """Load an adapter's weights into the layers of `add_adapter`; raises as `load_adapter`."""
    parts = _read_parts(folder)
    layers = dict(network.named_modules())
    for (module, part), weight in parts.items():
        expected = layers[module].get(part)
        if expected is None or expected.shape != weight.shape:
            raise AdapterNotConvertible(
                f"The adapter's weight {peft_key(module, part)} has the shape {weight.T.shape}, which "
                "does not fit the base.",
                "Name the base that it was trained on.",
            )
    network.load_weights([(f"{module}.{part}", weight) for (module, part), weight in parts.items()], False)


def _read_parts(folder: Path) -> dict[tuple[str, str], Any]:
    """Return the weights by module and part, in the shapes of mlx-lm."""
    weights: Any = mx.load(str(folder / ADAPTER_WEIGHTS))
    # Contiguous: a product with another layout differs in its last bits.
    return {split_peft_key(key): mx.contiguous(weight.T) for key, weight in weights.items()}


def save_adapter(network: nn.Module, config: LoraConfig, folder: Path, base: str) -> None:
    """Write the network's adapter in PEFT's format.

    Args:
        network: A model with the layers of `add_adapter` or `load_adapter`.
        config: The config that they were given.
        folder: The folder to write into, which must exist.
        base: The location of the base, for `adapter_config.json`.
    """
    weights: dict[str, Any] = {}
    modules = []
    for name, layer in network.named_modules():
        if isinstance(layer, DoRALinear | LoRALinear):
            modules.append(name)
            weights |= {peft_key(name, part): layer[part].T for part in PEFT_PARTS if part in layer}
    mx.save_safetensors(str(folder / ADAPTER_WEIGHTS), weights, metadata={"format": "pt"})
    values = config.to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    published = LoraConfig(**{name: value for name, value in values.items() if name != "peft_version"})
    published.target_modules = set(target_modules(modules))
    published.save_pretrained(str(folder))


def dense_weight(layer: nn.Module) -> Any:
    """Return a linear or embedding layer's weight (out, in), dequantized if necessary."""
    if not isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return layer.weight
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def quantized_layers(network: nn.Module) -> dict[str, Any]:
    """Return the quantized layers by the names that they have without an adapter."""
    return {
        name.removesuffix(".linear"): layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
