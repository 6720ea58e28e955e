"""The memory of this host, of which a stage can use what no other program holds."""

import os

import psutil
import torch

from trainers.configs.base import Queue
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import TrainingConfig
from trainers.preflight.memory.model import USABLE_SHARE, has_engine
from trainers.preflight.memory.unified import unified_share


def local_host(config: TrainingConfig) -> HostMemory:
    """Return the memory of this host, or of its GPUs, that a stage can use.

    What other programs hold is not available; what this one holds is part of its estimate, as the weights
    and the engine of a run are.
    """
    # Ranks must choose alike, and each would see another amount of free memory: they take the whole, of GPUs
    # that they hold alone.
    takes_whole = config.processes > 1 or has_engine(config)
    if not config.uses_mlx and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(0)
        memory = total if takes_whole else min(total, free + torch.cuda.memory_reserved(0))
        count = torch.cuda.device_count()
        return HostMemory(worker="this host", device="cuda", devices=count, memory_bytes=memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if config.queue is Queue.mlx:
        return HostMemory(worker="this host", device="mlx", memory_bytes=memory)
    if not takes_whole:
        memory = min(memory, psutil.virtual_memory().available + _own_bytes())
    return HostMemory(worker="this host", memory_bytes=memory // config.devices)


def _own_bytes() -> int:
    """Return the memory of this process, without files that it has mapped."""
    held = psutil.Process().memory_info()
    # macOS does not count the files.
    return int(held.rss - getattr(held, "shared", 0))


def usable_bytes(host: HostMemory) -> int:
    """Return how much of a device's memory a stage can use."""
    share = unified_share(host.memory_bytes) if host.device == "mlx" else USABLE_SHARE
    return int(share * host.memory_bytes)
