"""What MLX on a Mac cannot train, and what would be needed."""

from trainers.configs.backends.kernels import KernelPackage
from trainers.configs.training import (
    Attention,
    FullTuning,
    LoraTuning,
    Optimizer,
    Parallelism,
    Precision,
    Quantization,
    TrainingConfig,
)


def list_mlx_obstacles(config: TrainingConfig) -> list[str]:
    """Return the settings that MLX does not have, each with what to do; empty if there are none."""
    return [*_list_setting_obstacles(config), *_list_tuning_obstacles(config)]


def _list_setting_obstacles(config: TrainingConfig) -> list[str]:
    obstacles = []
    if config.devices > 1:
        obstacles.append(f"devices is {config.devices}, and a Mac has one; several need queue cuda")
    if config.nodes > 1:
        obstacles.append(f"nodes is {config.nodes}, and MLX trains on one host; several need queue cuda")
    if config.parallelism is not Parallelism.auto:
        obstacles.append(f"parallelism {config.parallelism} needs several GPUs; omit it, or use queue cuda")
    # MLX computes attention as `eager` does, softcapping included.
    if config.attention not in (Attention.auto, Attention.eager):
        obstacles.append(f"attention {config.attention} is an implementation of torch; omit it")
    if config.precision is Precision.fp16:
        obstacles.append("precision fp16 needs the loss scaling of torch; set it to auto or fp32")
    if config.optimizer is not Optimizer.adamw:
        obstacles.append(
            f"optimizer {config.optimizer} is an implementation of torch; omit it, or use queue cuda"
        )
    if config.compile:
        obstacles.append("compile is a part of torch, and MLX compiles its steps in any case; omit it")
    if config.kernels is not KernelPackage.none:
        obstacles.append("kernels are for the layers of torch, and MLX has its own; omit it")
    if getattr(config, "packing", False):
        obstacles.append(
            "packing needs attention that separates the rows of a sequence, which MLX lacks; omit it, or use "
            "queue cuda"
        )
    if getattr(config, "neftune_alpha", None) is not None:
        obstacles.append("neftune_alpha is a part of the torch program alone; omit it, or use queue cuda")
    return obstacles


def _list_tuning_obstacles(config: TrainingConfig) -> list[str]:
    tuning = config.tuning
    if isinstance(tuning, LoraTuning) and tuning.quantization is Quantization.nf4:
        return ["tuning.quantization nf4 is a format of bitsandbytes; set it to 4bit, which each backend has"]
    if isinstance(tuning, FullTuning) and config.precision is Precision.bf16:
        return [
            "full tuning in bf16 rounds small updates away, and MLX has no mixed precision; set precision to "
            "auto or fp32, train an adapter, or use queue cuda"
        ]
    return []
