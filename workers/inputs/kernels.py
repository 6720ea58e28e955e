"""The folder of kernels that a training stage names, on this host."""

from pathlib import Path
from typing import TypeVar

from app.settings import Settings
from trainers.configs.backends.kernels import KernelFolder
from trainers.configs.base import StageConfig
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.training import TrainingConfig
from workers.inputs.errors import InputKernelsRefused
from workers.inputs.models import check_links

C = TypeVar("C", bound=StageConfig)


def place_kernels(config: C, settings: Settings) -> C:
    """Return the config with the real path of its kernels.

    Raises InputKernelsRefused for a folder that is absent or that this host does not allow.
    """
    if isinstance(config, PreflightConfig):
        return config.model_copy(update={"target": place_kernels(config.target, settings)})
    if not isinstance(config, TrainingConfig) or not isinstance(config.kernels, KernelFolder):
        return config
    named, roots = Path(config.kernels.folder), settings.kernel_roots
    real = named.resolve()
    if not any(real.is_relative_to(root) and real != root for root in roots):
        raise InputKernelsRefused(
            f"The kernels {named} are not under a folder whose code this worker may run.",
            "Add their folder to TUNESMITH_KERNEL_ROOTS on the worker, or omit kernels.",
        )
    if not real.is_dir():
        raise InputKernelsRefused(
            f"The folder of kernels {named} does not exist on this worker's host.",
            "Copy the kernels there, or omit kernels.",
        )
    check_links(real, f"the kernels {named}", roots, InputKernelsRefused)
    return config.model_copy(update={"kernels": KernelFolder(folder=str(real))})
