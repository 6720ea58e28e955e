"""The files of LoRA, rsLoRA and DoRA adapters, in PEFT's format and in that of mlx-lm; MLX is not needed.

| | PEFT | mlx-lm |
| --- | --- | --- |
| down-projection | `lora_A.weight` (r, in) | `lora_a` (in, r) |
| up-projection | `lora_B.weight` (out, r) | `lora_b` (r, out) |
| magnitude of DoRA | `lora_magnitude_vector` (out) | `m` (out) |
| scale of the update | alpha / r, or alpha / sqrt(r) with rsLoRA | `scale` |
| adapted layers | `target_modules`, anywhere | `keys` within a layer, in the last `num_layers` |
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from trainers.modeling.model_config import read_object
from trainers.modeling.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

MLX_WEIGHTS = "adapters.safetensors"
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
PEFT_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
MLX_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
LAYER = re.compile(r"(?P<before>.*\blayers\.)(?P<number>\d+)\.(?P<key>.+)")


class AdapterNotConvertible(ProgramError):
    """An adapter that the other format cannot express."""

    code = ErrorCode.model_unsupported


@dataclass(frozen=True)
class MlxAdapter:
    """The settings in the `adapter_config.json` of mlx-lm."""

    rank: int
    scale: float
    dora: bool
    dropout: float = 0.0


def is_mlx_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter in the format of mlx-lm."""
    if not (folder / MLX_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return False
    config = read_object(folder / ADAPTER_CONFIG)
    return "peft_type" not in config and "lora_parameters" in config


def split_peft_key(key: str) -> tuple[str, str]:
    """Return the module and mlx-lm's name of the part; raises AdapterNotConvertible for another weight."""
    match = PEFT_KEY.fullmatch(key)
    if match is None:
        raise AdapterNotConvertible(
            f"MLX does not support the adapter's weight {key}.",
            "Use an adapter of linear layers alone, or merge it.",
        )
    return match["module"], MLX_PARTS[match["part"]]


def peft_key(module: str, part: str) -> str:
    """Return PEFT's name of a module's part, which is named as in mlx-lm."""
    return f"base_model.model.{module}.{PEFT_PARTS[part]}"


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


def read_mlx_config(folder: Path) -> MlxAdapter:
    """Read the settings of an adapter of mlx-lm; raises AdapterNotConvertible."""
    config = read_object(folder / ADAPTER_CONFIG)
    kind, parameters = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(parameters, dict):
        raise AdapterNotConvertible(
            f"The folder {folder} has the fine_tune_type {kind!r} of mlx-lm, which is not an adapter.",
            "Import the whole weights: `mlx_lm.fuse` writes them.",
        )
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if not isinstance(rank, int) or rank < 1 or not isinstance(scale, int | float):
        raise AdapterNotConvertible(
            f"The lora_parameters of {folder} have the rank {rank!r} and the scale {scale!r}.",
            "Both must be numbers, as mlx-lm writes them.",
        )
    return MlxAdapter(rank, float(scale), kind == "dora", float(parameters.get("dropout") or 0.0))


def make_peft_config(modules: Collection[str], adapter: MlxAdapter, base: str | None) -> LoraConfig:
    """Return PEFT's config of an adapter on exactly these modules."""
    alpha = adapter.scale * adapter.rank
    return LoraConfig(
        r=adapter.rank,
        # Engines read an integer where it is one.
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=adapter.dropout,
        use_dora=adapter.dora,
        target_modules=target_modules(modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )


def target_modules(modules: Iterable[str]) -> list[str]:
    """Return the names that select exactly these modules: short ones if every layer is adapted alike.

    mlx-lm may adapt the last layers only, where a short name would select others too.
    """
    modules = sorted(modules)
    numbers = defaultdict(set)
    for module in modules:
        match = LAYER.fullmatch(module)
        if match is None:
            return modules
        numbers[match["before"], match["key"]].add(int(match["number"]))
    count = max((max(layers) + 1 for layers in numbers.values()), default=0)
    if any(layers != set(range(count)) for layers in numbers.values()):
        return modules
    return sorted({key.rpartition(".")[2] for _, key in numbers})


def mlx_to_peft(source: Path, target: Path, base: str | None) -> None:
    """Write an adapter of mlx-lm into a folder in PEFT's format; raises AdapterNotConvertible."""
    adapter = read_mlx_config(source)
    weights, modules = {}, set()
    for name, weight in load_file(source / MLX_WEIGHTS).items():
        module, _, part = name.rpartition(".")
        if part not in PEFT_PARTS or weight.ndim != (1 if part == "m" else 2):
            raise AdapterNotConvertible(
                f"The adapter's weight {name} with shape {tuple(weight.shape)} is not of a linear layer.",
                "Train it on linear layers alone, or import the whole weights that `mlx_lm.fuse` writes.",
            )
        modules.add(module)
        weights[peft_key(module, part)] = weight.T.contiguous() if weight.ndim == 2 else weight
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / ADAPTER_WEIGHTS, {"format": "pt"})
    make_peft_config(modules, adapter, base).save_pretrained(str(target))


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
    text = json.dumps(_mlx_config(modules, MlxAdapter(rank, scale, config.use_dora)), indent=1)
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


def _mlx_config(modules: Iterable[str], adapter: MlxAdapter) -> dict[str, Any]:
    matches = {module: LAYER.fullmatch(module) for module in modules}
    # mlx-lm counts layers from the last one, and more than there are means all.
    count = 1 + max((int(match["number"]) for match in matches.values() if match), default=-1)
    return {
        "fine_tune_type": "dora" if adapter.dora else "lora",
        "num_layers": count,
        "lora_parameters": {
            "rank": adapter.rank,
            "scale": adapter.scale,
            "dropout": adapter.dropout,
            "keys": sorted({match["key"] if match else module for module, match in matches.items()}),
        },
    }
