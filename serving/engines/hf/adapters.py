"""LoRA adapters on one base: tried on an empty copy of the model before the live one is touched."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from serving.engines.hf.model import Base, Served, load_tokenizer

WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
# The other ways to start decompose the base weights and change them, which would change every other adapter.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
LOADER_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)
numbers = count(1)


class AdapterNotLoadable(ValueError):
    """The folder does not hold an adapter that fits this base."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(f"The adapter in {path} cannot be loaded: {reason}")


def load_adapter(base: Base, name: str, path: str) -> Served:
    """Put an adapter beside the others; raises AdapterNotLoadable and then leaves the model as it was."""
    config = check_adapter(base, path)
    tokenizer = adapter_tokenizer(base, path)
    # A module's key may not hold a dot, which served names may; a fresh number also never meets a stale one.
    adapter = f"adapter_{next(numbers)}"
    if base.peft is None:
        base.peft = PeftModel(base.network, config, adapter)
        base.peft.requires_grad_(False)
    base.peft.load_adapter(path, adapter, torch_device=str(base.device))
    base.network.eval()
    # Loading moves the active adapter, so the next forward pass must select again.
    base.selected = adapter
    base.select(None)
    ends = base.served.eos_ids | ({tokenizer.eos_token_id} - {None})
    return Served(name, path, adapter, tokenizer, ends)


def unload_adapter(base: Base, served: Served) -> None:
    """Free an adapter's weights; no row may use it any more."""
    base.select(None)
    base.peft.delete_adapter(served.adapter)
    base.selected = served.adapter
    base.select(None)


def check_adapter(base: Base, path: str) -> Any:
    """The adapter's config, once names and shapes of its weights are those that the base wants."""
    try:
        config = read_config(path)
        found = weight_shapes(path)
        wanted = wanted_shapes(base, config)
    except LOADER_FAULTS as fault:
        raise AdapterNotLoadable(path, fault) from fault
    for difference, names in {
        "weights are missing": wanted.keys() - found.keys(),
        "there are weights that its config does not name (a resized vocabulary must be merged)": found.keys()
        - wanted.keys(),
        "shapes differ from the base's": {
            key for key in wanted.keys() & found.keys() if wanted[key] != found[key]
        },
    }.items():
        if names:
            raise AdapterNotLoadable(path, f"{difference}: {min(names)} ({len(names)} in all).")
    return config


def read_config(path: str) -> Any:
    """The LoRA config, refused where it would change the base for others or run code."""
    with (Path(path) / "adapter_config.json").open() as file:
        kind = json.load(file).get("peft_type")
    if kind != "LORA":
        raise ValueError(f"its peft_type is {kind}, and only LORA adapters can be served.")
    config = PeftConfig.from_pretrained(path)
    assert isinstance(config, LoraConfig)
    if config.bias != "none":
        raise ValueError(
            f"its config has bias {config.bias!r}, which changes the base; train with bias 'none'."
        )
    if config.init_lora_weights not in PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights {config.init_lora_weights!r} changes the base; convert it to plain LoRA."
        )
    config.inference_mode = True
    return config


def weight_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the adapter's file, from its header."""
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{WEIGHTS} is missing; only safetensors weights are read.")
    with safe_open(file, framework="pt") as weights:
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118


def wanted_shapes(base: Base, config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that the config asks for, from a copy of the model that holds no memory."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(base.network.config, trust_remote_code=False)
        trial = PeftModel(empty, config, "trial")
    wanted = get_peft_model_state_dict(trial, adapter_name="trial", save_embedding_layers=False)
    return {key: tuple(value.shape) for key, value in wanted.items()}


def adapter_tokenizer(base: Base, path: str) -> Any:
    """The adapter's own tokenizer and chat template where its folder carries them, else the base's."""
    folder = Path(path)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return with_template(base, folder / "chat_template.jinja")
    try:
        tokenizer = load_tokenizer(path)
    except LOADER_FAULTS as fault:
        raise AdapterNotLoadable(path, f"its tokenizer is broken: {fault}") from fault
    rows = base.network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise AdapterNotLoadable(path, f"its tokenizer has {len(tokenizer)} tokens and the base only {rows}.")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = base.served.tokenizer.chat_template
    return tokenizer


def with_template(base: Base, file: Path) -> Any:
    """The base's tokenizer with another chat template, if there is one."""
    if not file.exists():
        return base.served.tokenizer
    tokenizer = load_tokenizer(base.served.path)
    tokenizer.chat_template = file.read_text()
    return tokenizer
