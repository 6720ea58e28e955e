"""Warnings about training stages before anything runs: hours on a CPU, too few steps, too small a GPU."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.jobs.graph.resolved_stage import ResolvedStage
from app.models.references import find_folder
from app.tables import Worker
from trainers.configs import LoraTuning, Queue, TrainingConfig
from trainers.configs.presets import load_presets
from trainers.preflight.compute_estimate import (
    BYTES_PER_TOKEN,
    CORE_FLOPS,
    FEW_STEPS_HINT,
    TRAINING_SHARE,
    WARNING_SECONDS,
    count_active_parameters,
    count_parameters,
    describe_duration,
    describe_few_steps,
    estimate_flops,
    read_size_in_name,
)
from trainers.preflight.memory.model import has_engine
from trainers.preflight.memory.rough import GB, explain_too_little_memory

CountParameters = Callable[[dict[str, Any]], float | None]
MAX_CONFIG_BYTES = 1 << 20
_GPU_PRESET = re.compile(r"^gpus?-(?:\d+x)?(\d+)gb")


def list_step_warnings(stage: ResolvedStage) -> list[str]:
    """Return a warning if the rows make few optimizer steps."""
    config, rows = stage.config, stage.training_rows
    if not isinstance(config, TrainingConfig) or rows is None:
        return []
    found = describe_few_steps(config, rows)
    return [f"{found} {FEW_STEPS_HINT}"] if found is not None else []


def list_time_warnings(stage: ResolvedStage, workers: Sequence[Worker]) -> list[str]:
    """Return a warning if the stage would take hours on the fastest CPU among these workers.

    The size of a hub model is read from its name; without any size there is no warning.
    """
    config, rows = stage.config, stage.training_rows
    if stage.queue is not Queue.cpu or not isinstance(config, TrainingConfig) or rows is None:
        return []
    parameters = count_base_parameters(config.base, count_active_parameters)
    if parameters is None:
        return []
    datasets = [dataset for dataset, _ in stage.mixture] or [stage.datasets["dataset"]]
    size_bytes = sum(dataset.size_bytes for dataset in datasets)
    tokens = size_bytes / max(1, sum(dataset.row_count for dataset in datasets)) / BYTES_PER_TOKEN
    max_length = getattr(config, "max_length", None)
    flops = estimate_flops(config, parameters, rows, min(tokens, max_length or tokens))
    cores = max((worker.hardware.get("cpus") or 1 for worker in workers), default=1)
    seconds = flops / (cores * CORE_FLOPS * TRAINING_SHARE)
    if seconds < WARNING_SECONDS:
        return []
    count = "1 core" if cores == 1 else f"{cores} cores"
    return [
        f"On the CPU this stage takes about {describe_duration(seconds)}: about {parameters / 1e9:.2g} "
        f"billion parameters on {count} of {CORE_FLOPS / 1e9:.0f} GFLOP/s, half of which training reaches. "
        "Use a GPU, a smaller model, or fewer rows."
    ]


def list_memory_warnings(stage: ResolvedStage, workers: Sequence[Worker]) -> list[str]:
    """Return a warning if the stage does not fit into the largest GPU among these workers.

    Without a GPU among them, the one that the stage's preset is for counts. The size of a base is read as for
    the time; without any, there is no warning.
    """
    config = stage.config
    if stage.queue is not Queue.cuda or not isinstance(config, TrainingConfig):
        return []
    parameters = count_base_parameters(config.base)
    gpus = [gpu for worker in workers for gpu in worker.hardware.get("gpus", [])]
    memory_bytes = max((gpu.get("memory_bytes") or 0 for gpu in gpus), default=_read_preset_bytes(config))
    if parameters is None or not memory_bytes:
        return []
    found = explain_too_little_memory(config, parameters, _count_row_tokens(stage), memory_bytes)
    return [] if found is None else [f"{found} {_offer_less_memory(config)}"]


def _read_preset_bytes(config: TrainingConfig) -> int:
    """Return the memory of a GPU that a preset's name states, such as 24 GB for `gpu-24gb`; 0 without one."""
    found = [_GPU_PRESET.search(name) for name in _list_presets(config)]
    return max((int(match[1]) * GB for match in found if match is not None), default=0)


def _offer_less_memory(config: TrainingConfig) -> str:
    if not isinstance(config.tuning, LoraTuning):
        return "Train an adapter (tuning.method lora), or use several GPUs with parallelism fsdp2."
    if config.tuning.quantization is not None or has_engine(config):
        return "Lower micro_batch_size or the length of rows, or use a smaller base or a larger GPU."
    names = [f"{name}-nf4" for name in _list_presets(config) if f"{name}-nf4" in load_presets()]
    remedy = f"preset {names[0]}" if names else "tuning.quantization nf4"
    return f"Use {remedy}, which stores the base in 4 bits, a smaller base, or a larger GPU."


def _list_presets(config: TrainingConfig) -> list[str]:
    return [config.preset] if isinstance(config.preset, str) else config.preset or []


def _count_row_tokens(stage: ResolvedStage) -> float:
    """Return the usual tokens of a sequence by the size of the dataset's file, or of a packed one."""
    max_length = getattr(stage.config, "max_length", None)
    datasets = [dataset for dataset, _ in stage.mixture]
    datasets = datasets or [found for name, found in stage.datasets.items() if name == "dataset"]
    rows = sum(dataset.row_count for dataset in datasets)
    if max_length is not None and (not rows or getattr(stage.config, "packing", False)):
        return float(max_length)
    tokens = sum(dataset.size_bytes for dataset in datasets) / max(1, rows) / BYTES_PER_TOKEN
    return min(tokens, max_length or tokens)


def count_base_parameters(base: Any, count: CountParameters = count_parameters) -> float | None:
    """Return the parameters of a base by its config.json or its name; None if neither is known."""
    if not isinstance(base, str):
        return None
    folder = find_folder(base)
    found = count(_read_config(folder)) if folder is not None else None
    return found or read_size_in_name(base)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the model's config; empty if it cannot be read, which the worker reports."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
