"""Warnings about training stages that take hours on a CPU, or too few steps, before anything runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.jobs.graph.resolved_stage import ResolvedStage
from app.models.references import find_folder
from app.tables import Worker
from trainers.configs import Queue, TrainingConfig
from trainers.preflight.compute_estimate import (
    BYTES_PER_TOKEN,
    CORE_FLOPS,
    FEW_STEPS_HINT,
    TRAINING_SHARE,
    WARNING_SECONDS,
    count_parameters,
    describe_duration,
    describe_few_steps,
    estimate_flops,
    read_size_in_name,
)

MAX_CONFIG_BYTES = 1 << 20


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
    parameters = count_base_parameters(config.base)
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


def count_base_parameters(base: Any) -> float | None:
    """Return the parameters of a base by its config.json or its name; None if neither is known."""
    if not isinstance(base, str):
        return None
    folder = find_folder(base)
    found = count_parameters(_read_config(folder)) if folder is not None else None
    return found or read_size_in_name(base)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the model's config; empty if it cannot be read, which the worker reports."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
