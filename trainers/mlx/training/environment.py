"""The environment that determines the numerics of a step with MLX: device, settings, library versions."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from trainers.configs.base import Queue
from trainers.configs.resume_guarantee import ResumeGuarantee, get_resume_guarantee
from trainers.configs.training import TrainingConfig
from trainers.mlx.network import pick_mlx_precision, uses_gpu
from trainers.runtime import run_dir as files
from trainers.runtime.environment import ENVIRONMENT, compare_environments


def save_environment(config: TrainingConfig, checkpoint: Path) -> None:
    """Write the environment into a checkpoint that is about to be published."""
    files.write_json(checkpoint / ENVIRONMENT, _current_environment(config))


def expected_guarantee(config: TrainingConfig) -> ResumeGuarantee:
    """Return how exactly the run would resume on this host."""
    guarantee = get_resume_guarantee(config, Queue.mlx if uses_gpu() else Queue.cpu)
    assert guarantee is not None, "training stages have checkpoints"
    return guarantee


def resume_guarantee(config: TrainingConfig, checkpoint: Path) -> ResumeGuarantee:
    """Return how exactly the run resumes from this checkpoint, which another host may have written."""
    return compare_environments(expected_guarantee(config).reasons, checkpoint, _current_environment(config))


def _current_environment(config: TrainingConfig) -> dict[str, Any]:
    name = mx.device_info().get("device_name") if uses_gpu() else platform.processor() or platform.machine()
    return {
        "micro_batch_size": config.micro_batch_size,
        "precision": pick_mlx_precision(config).value,
        "device": name,
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "transformers": version("transformers"),
    }
