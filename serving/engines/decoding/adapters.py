"""PEFT's LoRA adapters, tried on an empty copy of the model before the live one is touched."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The other ways to start decompose the base weights and change them, which would change every other adapter.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
# PEFT writes its own version beside the fields of its config.
NOT_A_FIELD = {"peft_version"}
NEUTRAL: tuple[Any, ...] = (None, False, {}, [], "")
LOADER_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


class AdapterNotLoadable(ValueError):
    """The folder does not hold an adapter that fits this base."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(f"The adapter in {path} cannot be loaded: {reason}")


@contextmanager
def wrap_loader_errors(path: str) -> Iterator[None]:
    """Whatever a loader raises, as AdapterNotLoadable."""
    try:
        yield
    except AdapterNotLoadable:
        raise
    except LOADER_FAULTS as fault:
        raise AdapterNotLoadable(path, fault) from fault


def check_adapter(path: str, model_config: Any, most_rank: int) -> Any:
    """The adapter's config, once names and shapes of its weights are those that the base wants."""
    with wrap_loader_errors(path):
        config = read_config(path)
        refuse_large_rank(config, most_rank)
        found = weight_shapes(path)
        wanted = wanted_shapes(model_config, config)
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
    """The LoRA config, refused where it would change the base for others, run code or be half understood."""
    with (Path(path) / "adapter_config.json").open() as file:
        written = json.load(file)
    if not isinstance(written, dict):
        raise ValueError("its adapter_config.json is not a JSON object.")
    if "peft_type" not in written and "fine_tune_type" in written:
        raise ValueError("it is in mlx-lm's own format; convert it to PEFT's first.")
    if written.get("peft_type") != "LORA":
        raise ValueError(
            f"its peft_type is {written.get('peft_type')}, and only LORA adapters can be served."
        )
    known = {field.name for field in dataclasses.fields(LoraConfig)} | NOT_A_FIELD
    strange = sorted(key for key in written.keys() - known if written[key] not in NEUTRAL)
    if strange:
        raise ValueError(f"its config has {strange[0]!r}, which this version of PEFT does not know.")
    config = PeftConfig.from_pretrained(path)
    assert isinstance(config, LoraConfig)
    refuse_changes_of_the_base(config)
    config.inference_mode = True
    return config


def refuse_changes_of_the_base(config: Any) -> None:
    """Raise ValueError for an adapter that could not be taken away again."""
    if config.bias != "none":
        raise ValueError(
            f"its config has bias {config.bias!r}, which changes the base; train with bias 'none'."
        )
    if config.init_lora_weights not in PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights {config.init_lora_weights!r} changes the base; convert it to plain LoRA."
        )
    if config.layer_replication:
        raise ValueError("layer_replication changes the base; merge the adapter into it.")


def refuse_large_rank(config: Any, most: int) -> None:
    """Raise ValueError for a rank beyond the engine's limit."""
    rank = max([config.r, *config.rank_pattern.values()])
    if rank > most:
        raise ValueError(f"its rank is {rank}, and the engine's max_adapter_rank is {most}.")


def weight_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the adapter's file, from its header."""
    file = Path(path) / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ValueError(f"{ADAPTER_WEIGHTS} is missing; only safetensors weights are read.")
    with safe_open(file, framework="pt") as weights:
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118


def wanted_shapes(model_config: Any, config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that the config asks for, from a copy of the model that holds no memory."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
        trial = PeftModel(empty, config, "trial")
    wanted = get_peft_model_state_dict(trial, adapter_name="trial", save_embedding_layers=False)
    return {key: tuple(value.shape) for key, value in wanted.items()}
