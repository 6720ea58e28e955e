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
from trainers.mlx.adapters import dense_weight, quantized_layers, save_adapter
from trainers.mlx.network import QUANTIZATION_KEYS
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
    dense = {f"{name}.weight": dense_weight(layer) for name, layer in quantized_layers(network).items()}
    dtype = next(iter(dense.values())).dtype

    def fill(folder: Path) -> None:
        weights = {
            name: weight
            for shard in sorted(original.glob("*.safetensors"))
            for name, weight in _load(shard).items()
            # The base may be quantized in its files.
            if f"{name.rpartition('.')[0]}.weight" not in dense or name.endswith(".bias")
        }
        values = {name: weight.astype(dtype) for name, weight in (weights | dense).items()}
        mx.save_safetensors(str(folder / "model.safetensors"), values, metadata={"format": "pt"})
        model_config = load_config(str(original))
        model_config.dtype = str(dtype).removeprefix("mlx.core.")
        for name in QUANTIZATION_KEYS:
            vars(model_config).pop(name, None)
        model_config.save_pretrained(folder)
        if (generation := load_generation_config(str(original))) is not None:
            generation.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    files.publish_folder(target, fill)


def _write_weights(network: nn.Module, base: str, folder: Path) -> None:
    weights = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    model_config = load_config(base)
    model_config.dtype = "float32"
    model_config.save_pretrained(folder)
    if (generation := load_generation_config(base)) is not None:
        generation.save_pretrained(folder)


def _load(shard: Path) -> dict[str, mx.array]:
    weights: Any = mx.load(str(shard))
    return dict(weights)
