"""The formats of LoRA adapters in PEFT and in mlx-lm; no ML package is needed to read the files of mlx-lm.

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
import struct
from collections import defaultdict
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from trainers.modeling.model_config import Json, ModelFileRefused
from trainers.modeling.safetensors_file import DTYPE_BITS, METADATA, read_header

MLX_WEIGHTS = "adapters.safetensors"
PEFT_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
LAYER = re.compile(r"(?P<before>.*\blayers\.)(?P<number>\d+)\.(?P<key>.+)")
# Of an element's bits, the code of a memory view with elements of that size.
VIEW_CODES: dict[int, Literal["H", "I"]] = {16: "H", 32: "I"}


def is_mlx_config(config: Json) -> bool:
    """Return whether an `adapter_config.json` is that of mlx-lm."""
    return "peft_type" not in config and "lora_parameters" in config


def peft_key(module: str, part: str) -> str:
    """Return PEFT's name of a module's part, which is named as in mlx-lm."""
    return f"base_model.model.{module}.{PEFT_PARTS[part]}"


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
    if any(len(layers) != count for layers in numbers.values()):
        return modules
    return sorted({key.rpartition(".")[2] for _, key in numbers})


def convert_mlx_config(config: Json, weights: Path) -> Json:
    """Return PEFT's config of an adapter of mlx-lm; raises ModelFileRefused or SafetensorsInvalid."""
    kind, parameters = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(parameters, dict):
        raise ModelFileRefused(
            f"has the fine_tune_type {kind!r} of mlx-lm, which is not an adapter; "
            "`mlx_lm.fuse` writes whole weights"
        )
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if not isinstance(rank, int) or not isinstance(scale, int | float) or not isfinite(scale) or rank < 1:
        raise ModelFileRefused(f"has the rank {rank!r} and the scale {scale!r}; both must be numbers")
    alpha = scale * rank
    base = config.get("model")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base if isinstance(base, str) else None,
        "r": rank,
        # Engines read an integer where it is one.
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_dora": kind == "dora",
        "bias": "none",
        "target_modules": target_modules(_modules(read_header(weights)[0], rank)),
        "inference_mode": True,
    }


def convert_mlx_weights(source: Path, target: Path) -> None:
    """Write the weights of an adapter of mlx-lm under PEFT's names: each matrix is transposed."""
    header, begin = read_header(source)
    entries: Json = {METADATA: {"format": "pt"}}
    end = 0
    for name, entry in header.items():
        module, _, part = name.rpartition(".")
        first, end = end, end + entry["data_offsets"][1] - entry["data_offsets"][0]
        shape = entry["shape"][::-1]
        entries[peft_key(module, part)] = entry | {"shape": shape, "data_offsets": [first, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as weights, target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            weights.seek(begin + entry["data_offsets"][0])
            content = weights.read(entry["data_offsets"][1] - entry["data_offsets"][0])
            elements = memoryview(content).cast(VIEW_CODES[DTYPE_BITS[entry["dtype"]]])
            columns = entry["shape"][1] if len(entry["shape"]) == 2 else 1
            for column in range(columns):
                file.write(elements[column::columns].tobytes())


def _modules(header: dict[str, Any], rank: int) -> set[str]:
    """Return the adapted modules; raises ModelFileRefused for a weight that is not of a linear layer."""
    shapes: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for name, entry in header.items():
        module, _, part = name.rpartition(".")
        is_part = part in PEFT_PARTS and len(entry["shape"]) == (1 if part == "m" else 2)
        if not module or not is_part or DTYPE_BITS[entry["dtype"]] not in VIEW_CODES:
            raise ModelFileRefused(
                f"is for the weight {name[:80]!r} of shape {entry['shape']}; only adapters of linear layers "
                "are converted from mlx-lm's format"
            )
        shapes[module][part] = entry["shape"]
    for module, parts in shapes.items():
        ranks = (parts.get("lora_a", [0, 0])[1], parts.get("lora_b", [0])[0])
        if ranks != (rank, rank):
            raise ModelFileRefused(f"has the rank {rank}, but not the weights of {module[:80]!r}")
    return set(shapes)
