"""Models of text and images, of which the stages train, and the engines serve, the text model.

The whole model is loaded: its adapters then have the names that engines expect, and a model that is written
still reads images. The encoders of images and sound, and their projections into the text model, stay as they
are.
"""

import re
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

# A test shows for these that the text model alone is trained, merged and served.
MULTIMODAL_ARCHITECTURES: Final = frozenset(
    {"gemma3", "gemma4", "gemma4_unified", "mistral3", "qwen3_5", "qwen3_5_moe"}
)
# How images and videos are read; an engine that serves a multimodal model does not start without them.
PROCESSOR_FILES: Final = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Return whether the model contains encoders next to its text model."""
    return config.model_type in MULTIMODAL_ARCHITECTURES


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that loads the whole model."""
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM


def text_architecture(config: PreTrainedConfig) -> str:
    """Return the type of the text model: of a multimodal model, that of the one it contains."""
    return str(config.get_text_config().model_type if is_multimodal(config) else config.model_type)


def list_head_widths(config: PreTrainedConfig) -> set[int]:
    """Return the widths of the heads of attention, which differ between the layers of some text models."""
    text = config.get_text_config()
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    heads = [
        (getattr(layer, "head_dim", None), getattr(layer, "num_attention_heads", None)) for layer in layers
    ]
    return {width or text.hidden_size // count for width, count in heads if width or count}


def find_text_model(model: PreTrainedModel) -> str | None:
    """Return the name of the text model within a multimodal model; None for a model of text alone."""
    if not is_multimodal(model.config):
        return None
    decoder = model.get_decoder()
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(decoder)]


def list_encoders(model: PreTrainedModel) -> list[str]:
    """Return the names of the parts that no stage changes: encoders and their projections."""
    text = find_text_model(model)
    if text is None:
        return []
    parent = text.rpartition(".")[0]
    names = (f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_children())
    return [name for name in names if name != text]


def exclude_encoders(model: PreTrainedModel) -> str | None:
    """Return the pattern of the modules that an adapter must not change, for PEFT; None without any."""
    encoders = list_encoders(model)
    return rf"({'|'.join(map(re.escape, encoders))})(\..*)?" if encoders else None


def freeze_encoders(model: PreTrainedModel) -> PreTrainedModel:
    """Exclude the encoders from training, since no row has an image; return the model."""
    for name in list_encoders(model):
        model.get_submodule(name).requires_grad_(False)
    return model


def text_modules(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return the modules by name, without those of the encoders."""
    encoders = tuple(f"{name}." for name in list_encoders(model))
    return {name: module for name, module in model.named_modules() if not f"{name}.".startswith(encoders)}


def copy_processor(base: Path, folder: Path) -> None:
    """Copy the settings with which images are read to a folder with the whole weights of a tuned model."""
    for name in PROCESSOR_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
