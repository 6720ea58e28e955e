"""The library that trains: torch, or MLX on a Mac."""

from enum import StrEnum
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from trainers.configs.backends.kernels import KernelPackage
from trainers.configs.backends.mlx_limits import list_mlx_obstacles
from trainers.configs.base import Config, Queue, StageConfig
from trainers.configs.engines import EngineKind
from trainers.configs.training import Attention, Optimizer, TrainingConfig
from trainers.configs.validation import ValidatedTrainingConfig


class Backend(StrEnum):
    """Library that computes the training steps."""

    auto = "auto"  # MLX on the queue `mlx`, else torch.
    torch = "torch"
    mlx = "mlx"


class BackendChoice(Config):
    """The library that trains a stage, and why."""

    backend: Backend = Field(description="`torch` or `mlx`.")
    reason: str = Field(description="Why this library was chosen.")


class BackendFault(NamedTuple):
    """Why a stage cannot run with its backend on a queue."""

    field: str
    reason: str


class PortableTrainingConfig(ValidatedTrainingConfig):
    """A training stage with a program for torch and one for MLX."""

    backend: Backend = Field(
        Backend.auto,
        description="Library that trains: `auto` is mlx on the queue `mlx` and torch on the others. `mlx` "
        "also runs on the queue `cpu` of a worker that has mlx-lm, which is slow and meant for tests.",
    )

    @property
    def uses_mlx(self) -> bool:
        """See `TrainingConfig`."""
        return choose_backend(self, self.queue).backend is Backend.mlx

    @property
    def mlx_obstacles(self) -> list[str]:
        """See `TrainingConfig`."""
        return list_mlx_obstacles(self)

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """A GPU, then a Mac if MLX can do all that the config asks for, then a CPU."""
        match self.backend:
            case Backend.mlx:
                return (Queue.mlx, Queue.cpu)
            case Backend.torch:
                return (Queue.cuda, Queue.cpu)
        if self.publishes_base:
            return (Queue.mlx,)
        return (Queue.cuda, Queue.cpu) if self.mlx_obstacles else (Queue.cuda, Queue.mlx, Queue.cpu)

    def capability_on(self, queue: Queue) -> str | None:
        """See `StageConfig`."""
        return EngineKind.mlx.value if choose_backend(self, queue).backend is Backend.mlx else None

    @property
    def capability(self) -> str | None:
        """MLX, where it trains."""
        return EngineKind.mlx.value if self.uses_mlx else None

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        # What a CPU lacks is found where a job is posted, which names the field, and by the program.
        if (fault := _find_library_fault(self, self.queue)) is not None:
            raise ValueError(fault.reason)
        return self


def choose_backend(config: TrainingConfig, queue: Queue | None) -> BackendChoice:
    """Return the library that trains a stage on the queue; None is that of a program started by hand."""
    if not isinstance(config, PortableTrainingConfig):
        return BackendChoice(
            backend=Backend.torch, reason=f"The stage {config.stage} has no program for MLX."
        )
    if config.backend is not Backend.auto:
        return BackendChoice(backend=config.backend, reason="The stage, or one of its presets, names it.")
    if queue is Queue.mlx:
        return BackendChoice(backend=Backend.mlx, reason="The queue mlx is that of Apple chips.")
    return BackendChoice(
        backend=Backend.torch, reason=f"The queue {queue or Queue.cpu} is not that of Apple chips."
    )


def describe_backend(config: StageConfig, queue: Queue) -> BackendChoice | None:
    """Return the library that trains a stage on the queue, or None if the stage does not train."""
    return choose_backend(config, queue) if isinstance(config, TrainingConfig) else None


def find_backend_fault(config: TrainingConfig, queue: Queue | None) -> BackendFault | None:
    """Return why the stage cannot run with its backend on the queue, and what is needed; None if it can."""
    uses_cpu = queue is Queue.cpu and choose_backend(config, queue).backend is not Backend.mlx
    fault = _find_cpu_fault(config) if uses_cpu else None
    return fault or _find_library_fault(config, queue)


def _find_library_fault(config: TrainingConfig, queue: Queue | None) -> BackendFault | None:
    """Return why the library that trains does not run on the queue, or cannot do what the config asks for."""
    if isinstance(config, PortableTrainingConfig):
        if config.backend is Backend.mlx and queue is Queue.cuda:
            reason = "backend mlx does not run on queue cuda; set queue to mlx, or backend to torch"
            return BackendFault("backend", reason)
        if config.backend is Backend.torch and queue is Queue.mlx:
            reason = (
                "backend torch does not use the Apple chip of queue mlx; set queue to cpu, or omit backend"
            )
            return BackendFault("backend", reason)
        if choose_backend(config, queue).backend is not Backend.mlx:
            return _find_torch_fault(config, queue)
    elif queue is not Queue.mlx:
        return None
    obstacles = config.mlx_obstacles
    if not obstacles:
        return None
    field = "backend" if isinstance(config, PortableTrainingConfig) else "queue"
    return BackendFault(field, f"it cannot be trained with MLX: {'; '.join(obstacles)}")


def _find_cpu_fault(config: TrainingConfig) -> BackendFault | None:
    """Return the setting that torch has on GPUs alone."""
    if config.precision.has_16_bits:
        reason = f"precision {config.precision} is not computed by a CPU; use auto or fp32, or queue cuda"
        return BackendFault("precision", reason)
    if config.attention in (Attention.flash_attention_2, Attention.flash_attention_3):
        reason = f"attention {config.attention} has no kernel for a CPU; use auto, or queue cuda"
        return BackendFault("attention", reason)
    if config.optimizer is Optimizer.paged_adamw_8bit:
        reason = "optimizer paged_adamw_8bit pages the memory of GPUs; use adamw_8bit, or queue cuda"
        return BackendFault("optimizer", reason)
    if config.kernels is KernelPackage.liger:
        reason = "kernels liger are Triton kernels for GPUs; omit kernels, or use queue cuda"
        return BackendFault("kernels", reason)
    return None


def _find_torch_fault(config: PortableTrainingConfig, queue: Queue | None) -> BackendFault | None:
    """Return why torch cannot train the stage; None also while its queue is still to be chosen."""
    is_chosen = queue is not None or config.backend is Backend.torch
    if is_chosen and config.publishes_base:
        reason = (
            "tuning.publish_dequantized_base is a part of MLX's program alone; set queue to mlx, or remove it"
        )
        return BackendFault("backend", reason)
    return None
