"""The published model: PEFT's adapter, or whole weights as transformers writes them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from trainers.configs.references import get_base_model
from trainers.configs.training import TrainingConfig
from trainers.mlx.adapters import save_adapter
from trainers.modeling.load import load_config, load_generation_config
from trainers.modeling.model_source import open_base
from trainers.runtime import run_dir as files


def write_model(
    network: nn.Module,
    adapter: LoraConfig | None,
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
) -> None:
    """Publish the current model with its tokenizer: the adapter, or all weights in fp32."""
    base = get_base_model(config.base)

    def fill(folder: Path) -> None:
        if adapter is not None:
            save_adapter(network, adapter, folder, base)
        else:
            _write_weights(network, base, folder)
        tokenizer.save_pretrained(folder)

    files.publish_folder(target, fill)


def write_dequantized_base(
    network: nn.Module, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, target: Path
) -> None:
    """Publish the base with the values that its 4-bit weights have, in the number format of training.

    Its other weights are those of the original files.
    """
    original = Path(open_base(get_base_model(config.base)))
    dense = {
        f"{name.removesuffix('.linear')}.weight": dequantize(layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.QuantizedLinear)
    }

    def fill(folder: Path) -> None:
        weights: dict[str, mx.array] = {}
        for shard in sorted(original.glob("*.safetensors")):
            found: Any = mx.load(str(shard))
            weights |= found
        assert dense.keys() <= weights.keys(), "find_targets has compared the names with transformers'"
        dtype = next(iter(dense.values())).dtype
        weights = {name: value.astype(dtype) for name, value in (weights | dense).items()}
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
        model_config = load_config(str(original))
        model_config.dtype = str(dtype).removeprefix("mlx.core.")
        model_config.save_pretrained(folder)
        if (generation := load_generation_config(str(original))) is not None:
            generation.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    files.publish_folder(target, fill)


def dequantize(layer: nn.QuantizedLinear) -> mx.array:
    """Return the values (out, in) of a layer's quantized weight."""
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def _write_weights(network: nn.Module, base: str, folder: Path) -> None:
    weights = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    model_config = load_config(base)
    model_config.dtype = "float32"
    model_config.save_pretrained(folder)
    if (generation := load_generation_config(base)) is not None:
        generation.save_pretrained(folder)
