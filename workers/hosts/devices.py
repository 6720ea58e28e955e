"""The devices of this host, and their reservation."""

import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.configs import Queue

NVIDIA_SMI = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    index: int
    name: str
    memory_bytes: int


def find_gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs of this host; empty where there is no driver."""
    try:
        output = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(", ") for line in output.splitlines())
    return [Gpu(int(index), name, int(mebibytes) << 20) for index, name, mebibytes in rows]


class DevicePool:
    """Reserves GPUs, each for one run or engine. The CPU and unified memory are shared by all."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._free = sorted(gpu.index for gpu in gpus)
        self._lock = threading.Lock()

    def take(self, queue: Queue, count: int = 1) -> list[int] | None:
        """Reserve GPUs and return their indices; None while fewer are free, and empty outside `cuda`.

        All or none are reserved: two runs that each held half of what they need would wait forever.
        """
        if queue is not Queue.cuda:
            return []
        with self._lock:
            if len(self._free) < count:
                return None
            taken, self._free = self._free[:count], self._free[count:]
            return taken

    def give_back(self, indices: Sequence[int]) -> None:
        """Free the GPUs."""
        with self._lock:
            self._free = sorted({*self._free, *indices})

    @property
    def free_gpus(self) -> int:
        """The number of GPUs that are not reserved."""
        return len(self._free)


def device_environment(queue: Queue, indices: Sequence[int]) -> dict[str, str]:
    """Return the variables that hide all other devices from a program."""
    if queue is Queue.cuda:
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in indices)}
    return {"CUDA_VISIBLE_DEVICES": ""}
