"""The most memory that a run has held: of its GPUs where it has some, else of its processes."""

from pathlib import Path

import torch
from torch import distributed

GPU_BYTES, RESIDENT_BYTES = "peak_gpu_bytes", "peak_resident_bytes"


def measure_peak(device: torch.device) -> dict[str, int]:
    """Return the largest peak of any rank, named for what it measures; every rank must call this.

    `peak_gpu_bytes` is what torch had allocated on the GPU; `peak_resident_bytes` is the memory of a process,
    with its libraries. Empty where the system reports neither.
    """
    is_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else read_peak_resident("self")
    if distributed.is_initialized():
        largest = torch.tensor([peak], dtype=torch.int64, device=device)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        peak = int(largest.item())
    return {GPU_BYTES if is_cuda else RESIDENT_BYTES: peak} if peak else {}


def read_peak_resident(pid: int | str) -> int:
    """Return the peak resident memory of a process in bytes, or 0 where the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
