"""What is in use of a host: of its GPUs, and of the disk of the worker's data directory."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.workers.gpus import GpuUse, read_gpu_use

# `nvidia-smi` takes from 50 ms to seconds, so it is not called at each heartbeat.
SAMPLE_SECONDS = 30


def add_use(hardware: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Return the hardware of a worker's row with what is in use now."""
    use = read_gpu_use() if hardware["gpus"] else {}
    return {
        **hardware,
        "gpus": [{**gpu, **asdict(use.get(gpu["uuid"], GpuUse()))} for gpu in hardware["gpus"]],
        "data_disk_free_bytes": _read_free_bytes(data_dir),
    }


def _read_free_bytes(folder: Path) -> int | None:
    """Return the free space of the folder's disk; None while the disk is unavailable."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
