"""The encoders of images and sound, and their projections into the text model, which no stage changes."""

import re
import shutil
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel

from trainers.modeling.multimodal.architectures import is_multimodal

# How images and videos are read; an engine that serves a multimodal model does not start without them.
PROCESSOR_FILES: Final = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


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
