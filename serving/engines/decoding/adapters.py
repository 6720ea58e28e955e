"""Checks of PEFT's LoRA adapters, on a copy of the model without memory, before the live model is changed."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from trainers.modeling import model_source
from trainers.modeling.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from trainers.modeling.multimodal.architectures import auto_class
from trainers.runtime.errors import ProgramError

# All other initializations decompose and change the base weights, and with them every other adapter.
HARMLESS_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
# PEFT writes its own version next to the fields of its config.
NOT_A_FIELD = {"peft_version"}
NEUTRAL: tuple[Any, ...] = (None, False, {}, [], "")
LOADER_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)

WeightShapes = dict[str, tuple[int, ...]]


class AdapterNotLoadable(ValueError):
    """A folder without an adapter that fits the base."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(f"The adapter in {path} cannot be loaded: {reason}")


@contextmanager
def wrap_loader_errors(path: str) -> Iterator[None]:
    """Raise every error of a loader as AdapterNotLoadable."""
    try:
        yield
    except AdapterNotLoadable:
        raise
    except FileNotFoundError as error:
        raise AdapterNotLoadable(path, f"there is no file {error.filename}.") from error
    except LOADER_ERRORS as error:
        raise AdapterNotLoadable(path, error) from error


def open_adapter(path: str) -> str:
    """Return the verified folder of an adapter; raise AdapterNotLoadable for an unsafe or missing file."""
    if not (Path(path) / ADAPTER_CONFIG).is_file():
        raise AdapterNotLoadable(path, f"there is no file {ADAPTER_CONFIG}.")
    try:
        return model_source.open_adapter(path)
    except ProgramError as error:
        raise AdapterNotLoadable(path, error.message) from error


def check_adapter(path: str, model_config: Any, max_rank: int) -> Any:
    """Return the adapter's config if the names and shapes of its weights fit the base.

    Raises:
        AdapterNotLoadable: They do not fit, or the config has something that cannot be served.
    """
    with wrap_loader_errors(path):
        config = read_config(path)
        check_rank(config, max_rank)
        found = read_weight_shapes(path)
        expected = expected_weight_shapes(model_config, config)
    problems = {
        "weights are missing": expected.keys() - found.keys(),
        "its config does not name all of its weights (merge an adapter with a resized vocabulary)": (
            found.keys() - expected.keys()
        ),
        "shapes differ from the base's": {
            key for key in expected.keys() & found.keys() if expected[key] != found[key]
        },
    }
    for problem, names in problems.items():
        if names:
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise AdapterNotLoadable(path, f"{problem}: {min(names)}{others}.")
    return config


def read_config(path: str) -> Any:
    """Read an adapter's LoRA config.

    Raises:
        ValueError: The config would change the base for other adapters, or has an unknown setting.
    """
    with (Path(path) / "adapter_config.json").open() as file:
        raw = json.load(file)
    if not isinstance(raw, dict):
        raise ValueError("its adapter_config.json is not a JSON object.")
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"its peft_type is {raw.get('peft_type')}, but only LORA adapters can be served.")
    known = {field.name for field in dataclasses.fields(LoraConfig)} | NOT_A_FIELD
    unknown = sorted(key for key in raw.keys() - known if raw[key] not in NEUTRAL)
    if unknown:
        raise ValueError(f"its config has {unknown[0]!r}, which this version of PEFT does not know.")
    config = PeftConfig.from_pretrained(path)
    assert isinstance(config, LoraConfig)
    check_base_is_unchanged(config)
    config.inference_mode = True
    return config


def check_base_is_unchanged(config: Any) -> None:
    """Raise ValueError for an adapter that changes the base, and so could not be unloaded."""
    if config.bias != "none":
        raise ValueError(
            f"its config has bias {config.bias!r}, which changes the base; train with bias 'none'."
        )
    if config.init_lora_weights not in HARMLESS_INITIALISATIONS:
        raise ValueError(
            f"its init_lora_weights {config.init_lora_weights!r} changes the base; convert it to plain LoRA."
        )
    if config.layer_replication:
        raise ValueError("its layer_replication changes the base; merge the adapter into it.")


def check_rank(config: Any, max_rank: int) -> None:
    """Raise ValueError for a rank above the engine's limit."""
    rank = max([config.r, *config.rank_pattern.values()])
    if rank > max_rank:
        raise ValueError(f"its rank is {rank}, but the engine's max_adapter_rank is {max_rank}.")


def read_weight_shapes(path: str) -> WeightShapes:
    """Read the names and shapes in the header of the adapter's file."""
    with safe_open(Path(path) / ADAPTER_WEIGHTS, framework="pt") as weights:
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118


def expected_weight_shapes(model_config: Any, config: Any) -> WeightShapes:
    """Compute the names and shapes that a config needs, from a model on the meta device (no memory)."""
    with torch.device("meta"):
        empty = auto_class(model_config).from_config(model_config, trust_remote_code=False)
        trial = PeftModel(empty, config, "trial")
    expected = get_peft_model_state_dict(trial, adapter_name="trial", save_embedding_layers=False)
    return {key: tuple(value.shape) for key, value in expected.items()}
