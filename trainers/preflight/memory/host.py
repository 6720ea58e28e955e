"""The memory of this host, of which a stage can use what no other program holds."""

import os
from collections.abc import Sequence
from datetime import timedelta

import psutil
import torch
from torch import distributed

from trainers.configs.base import Queue
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import FullTuning, Parallelism, TrainingConfig
from trainers.preflight.memory.model import PROGRAM_BYTES, USABLE_SHARE, count_optimizer_bytes, has_engine
from trainers.preflight.memory.shape import FP32_BYTES, MemorySettings, ModelShape
from trainers.preflight.memory.unified import unified_share
from trainers.runtime.ranks import local_rank, ranks_of_host, world_size

# A rank may still load its rows, which another one renders for it.
AGREEMENT_SECONDS = 1200.0


def local_host(config: TrainingConfig) -> HostMemory:
    """Return the memory of this host, or of its GPUs, that a stage can use.

    What other programs hold is not available; what this one holds is part of its estimate, as the weights
    of a run are. Of several GPUs, the one with the least memory decides.
    """
    if not config.uses_mlx and torch.cuda.is_available():
        count = torch.cuda.device_count()
        memory = min(_gpu_bytes(number, config) for number in _own_gpus(config, count))
        return HostMemory(worker="this host", device="cuda", devices=count, memory_bytes=memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if config.queue is Queue.mlx:
        return HostMemory(worker="this host", device="mlx", memory_bytes=memory)
    # An engine that already runs holds memory that the estimate counts.
    if not has_engine(config):
        memory = min(memory, psutil.virtual_memory().available + _own_bytes() * ranks_of_host())
    return HostMemory(worker="this host", memory_bytes=memory // config.devices)


def agreed_host(config: TrainingConfig) -> HostMemory:
    """Return the memory of this host's device, or of the smallest of all ranks: they must choose alike."""
    host = local_host(config)
    if not distributed.is_torchelastic_launched() or world_size() == 1:
        return host
    # The processes have not met yet: the store is the launcher's, which each of them reaches.
    store, rank, count = next(distributed.rendezvous("env://", timeout=timedelta(seconds=AGREEMENT_SECONDS)))
    store = distributed.PrefixStore("tunesmith/memory", store)
    return host.model_copy(update={"memory_bytes": agree_on_least(store, rank, count, host.memory_bytes)})


def agree_on_least(store: distributed.Store, rank: int, count: int, value: int) -> int:
    """Return the least value of all ranks, each of which must call this once with the store."""
    store.set(str(rank), str(value))
    return min(int(store.get(str(other))) for other in range(count))


def _own_gpus(config: TrainingConfig, count: int) -> Sequence[int]:
    """Return the GPU of this rank, or those that the ranks would have."""
    return [local_rank() % count] if world_size() > 1 else range(min(config.devices, count))


def _gpu_bytes(number: int, config: TrainingConfig) -> int:
    free, total = torch.cuda.mem_get_info(number)
    # An engine takes its share of the whole, and what it has taken already is not free.
    return int(total if has_engine(config) else min(total, free + torch.cuda.memory_reserved(number)))


def _own_bytes() -> int:
    """Return the memory of this process, without files that it has mapped."""
    held = psutil.Process().memory_info()
    # macOS does not count the files.
    return int(held.rss - getattr(held, "shared", 0))


def count_host_bytes(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, width: int
) -> dict[str, int]:
    """Return the bytes in the memory of a host with GPUs, by purpose; `width` is that of the passes.

    Files that are only mapped are not counted, since the kernel can drop them. `base` is an upper bound: only
    a base that is stored in another dtype or layout needs it, and it is gone before `checkpoint`.
    """
    parts = {"programs": config.devices * PROGRAM_BYTES["cpu"]}
    is_full = isinstance(config.tuning, FullTuning)
    if config.devices > 1 and settings.parallelism is Parallelism.fsdp2 and not settings.quantized:
        # The first rank converts the base for all.
        parts["base"] = shape.parameters * (FP32_BYTES if is_full else width)
    elif config.devices > 1 and settings.parallelism is Parallelism.zero2:
        # DeepSpeed trains in the format of the passes; with ZeRO-3 it partitions weights as they are read.
        parts["base"] = shape.parameters * width
    if is_full and settings.parallelism is Parallelism.fsdp2:
        # The shards of a checkpoint are copied, and written while training continues; of several hosts, the
        # first gathers them.
        parts["checkpoint"] = int(shape.parameters * FP32_BYTES + count_optimizer_bytes(config, shape))
    held = parts["programs"] + max(parts.get("base", 0), parts.get("checkpoint", 0))
    return parts | {"needed": held}


def usable_bytes(host: HostMemory) -> int:
    """Return how much of a device's memory a stage can use."""
    share = unified_share(host.memory_bytes) if host.device == "mlx" else USABLE_SHARE
    return int(share * host.memory_bytes)
