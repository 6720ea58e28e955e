"""Checks of the library that would train a stage, and of the memory of the Macs that are alive."""

from collections.abc import Iterator, Sequence

from app.http.errors import UnprocessableContent, field_error
from app.jobs.training_time import count_base_parameters
from app.models.references import check_kernel_folder
from app.tables import Worker
from app.workers.capable import filter_capable_workers
from app.workers.gpus import EMULATES_BF16
from trainers.configs import Queue, StageKind, TrainingConfig
from trainers.configs.backends.choice import find_backend_fault
from trainers.configs.backends.kernels import KernelFolder
from trainers.configs.stage_config import AnyStage
from trainers.configs.training import Precision
from trainers.preflight.memory.unified import least_unified_bytes, unified_share

GIB = 1 << 30


def check_backend(
    stage: AnyStage, queue: Queue, workers: Sequence[Worker], path: str
) -> Iterator[UnprocessableContent]:
    """Yield an error for a training stage that cannot be trained on the queue with its backend."""
    if not isinstance(stage, TrainingConfig):
        return
    if (fault := find_backend_fault(stage, queue)) is not None:
        yield field_error(f"{path}.{fault.field}", f"On queue {queue}, {fault.reason}.")
    elif queue is Queue.mlx:
        yield from _check_unified_memory(stage, workers, path)
    elif queue is Queue.cuda and stage.precision is Precision.bf16:
        yield from _check_bf16(stage, workers, path)


def _check_bf16(
    stage: TrainingConfig, workers: Sequence[Worker], path: str
) -> Iterator[UnprocessableContent]:
    """Yield an error if the GPUs of all live workers are known to emulate bf16, which the program refuses."""
    capable = filter_capable_workers(workers, Queue.cuda, StageKind(stage.stage))
    names = {str(gpu.get("name")) for worker in capable for gpu in worker.hardware.get("gpus", [])}
    if names and all(EMULATES_BF16.search(name) for name in names):
        yield field_error(
            f"{path}.precision",
            f"precision bf16 is only emulated by the GPUs of the live workers: {', '.join(sorted(names))}. "
            "Use auto or fp16, or start a worker with a GPU since Ampere.",
        )


def check_kernels(stage: AnyStage, path: str) -> list[UnprocessableContent]:
    """Return an error for a folder of kernels that the operator has not allowed: it is code."""
    if not isinstance(stage, TrainingConfig) or not isinstance(stage.kernels, KernelFolder):
        return []
    try:
        check_kernel_folder(stage.kernels.folder, f"{path}.kernels.folder")
    except UnprocessableContent as error:
        return [error]
    return []


def _check_unified_memory(
    stage: TrainingConfig, workers: Sequence[Worker], path: str
) -> Iterator[UnprocessableContent]:
    """Yield an error if the weights alone exceed what the GPU of any live Mac may use.

    What activations need beyond that follows from the rows, which preflight reads.
    """
    parameters = count_base_parameters(stage.base)
    capable = filter_capable_workers(workers, Queue.mlx, StageKind(stage.stage))
    sizes = [worker.hardware.get("memory_bytes") or 0 for worker in capable]
    most = max((int(unified_share(size) * size) for size in sizes), default=0)
    if parameters is None or not most:
        return
    needed = least_unified_bytes(stage.tuning, parameters)
    if needed > most:
        yield field_error(
            f"{path}.tuning",
            f"Tuning with method {stage.tuning.method} of about {parameters / 1e9:.2g} billion parameters "
            f"needs at least {needed / GIB:.0f} GiB with MLX; the GPU of the largest live Mac may use "
            f"{most / GIB:.0f} GiB. Train an adapter with quantization 4bit, choose a smaller model, or set "
            "the queue to cuda.",
        )
