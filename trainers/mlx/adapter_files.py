"""Adapters of PEFT for MLX: names and scales of their updates, and their form as files of mlx-lm."""

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from trainers.mlx.adapter_format import LAYER, MLX_WEIGHTS
from trainers.modeling.model_config import read_object
from trainers.modeling.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

# Settings that are applied here, or that do not matter after training; all others must be PEFT's defaults.
SUPPORTED_SETTINGS = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("inference_mode", "lora_dropout", "init_lora_weights", "eva_config", "runtime_config"),
}
PEFT_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?"
)
MLX_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}


class AdapterNotConvertible(ProgramError):
    """An adapter that the other format cannot express."""

    code = ErrorCode.model_unsupported


def split_peft_key(key: str) -> tuple[str, str]:
    """Return the module and mlx-lm's name of the part; raises AdapterNotConvertible for another weight."""
    match = PEFT_KEY.fullmatch(key)
    if match is None:
        raise AdapterNotConvertible(
            f"MLX does not support the adapter's weight {key}.",
            "Use an adapter of linear layers alone, or merge it.",
        )
    return match["module"], MLX_PARTS[match["part"]]


def scale_of(module: str, config: LoraConfig) -> float:
    """Return the factor of a module's update: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
    rank = rank_of(module, config)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def rank_of(module: str, config: LoraConfig) -> int:
    """Return the rank of a module's update."""
    return int(config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), module), config.r))


def unsupported_setting(config: LoraConfig) -> str | None:
    """Return a setting, as `name 'value'`, that could change completions but is not supported on MLX."""
    default = LoraConfig()
    for field in fields(LoraConfig):
        value = getattr(config, field.name)
        if field.name not in SUPPORTED_SETTINGS and value and value != getattr(default, field.name):
            return f"{field.name} {value!r}"
    return None


def peft_to_mlx(source: Path, target: Path) -> None:
    """Write an adapter of PEFT into a folder in the format of mlx-lm; raises AdapterNotConvertible."""
    config = read_lora_config(source)
    weights, modules = {}, set()
    for key, weight in load_file(source / ADAPTER_WEIGHTS).items():
        module, part = split_peft_key(key)
        modules.add(module)
        weights[f"{module}.{part}"] = weight.T.contiguous() if weight.ndim == 2 else weight
    settings = {(rank_of(module, config), scale_of(module, config)) for module in modules}
    if len(settings) != 1:
        raise AdapterNotConvertible(
            f"The adapter {source} has {len(settings)} combinations of rank and scale; mlx-lm has one.",
            "Merge the adapter, and export the whole weights.",
        )
    [(rank, scale)] = settings
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / MLX_WEIGHTS, {"format": "mlx"})
    text = json.dumps(_mlx_config(modules, rank, scale, dora=config.use_dora), indent=1)
    (target / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def read_lora_config(folder: Path) -> LoraConfig:
    """Read PEFT's config of an adapter; raises AdapterNotConvertible for a setting that MLX lacks."""
    kind = read_object(folder / ADAPTER_CONFIG).get("peft_type")
    config = LoraConfig.from_pretrained(str(folder)) if kind == "LORA" else None
    reason = f"peft_type {kind!r}" if config is None else unsupported_setting(config)
    if config is None or reason is not None:
        raise AdapterNotConvertible(
            f"The adapter {folder} has the {reason}, which MLX does not support.",
            "Merge the adapter into its base.",
        )
    return config


def _mlx_config(modules: Iterable[str], rank: int, scale: float, *, dora: bool) -> dict[str, Any]:
    matches = {module: LAYER.fullmatch(module) for module in modules}
    # mlx-lm counts layers from the last one, and more than there are means all.
    count = 1 + max((int(match["number"]) for match in matches.values() if match), default=-1)
    return {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": count,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted({match["key"] if match else module for module, match in matches.items()}),
        },
    }
