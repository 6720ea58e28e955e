"""The published model: PEFT's adapter, or whole weights as transformers writes them."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from trainers.configs.references import get_base_model
from trainers.configs.training import TrainingConfig
from trainers.mlx.adapters import save_adapter
from trainers.modeling.load import load_config, load_generation_config
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


def _write_weights(network: nn.Module, base: str, folder: Path) -> None:
    weights = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    model_config = load_config(base)
    model_config.dtype = "float32"
    model_config.save_pretrained(folder)
    if (generation := load_generation_config(base)) is not None:
        generation.save_pretrained(folder)
