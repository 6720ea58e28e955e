"""The hardware of this host, and the queues for which a worker uses it unless somebody names others."""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

from app.settings import get_settings
from app.workers.gpus import Gpu, find_gpus
from trainers.configs import Queue


@dataclass(frozen=True)
class HostFacts:
    """The system and the installed packages that decide which hardware can be used."""

    system: str
    machine: str
    torch: str | None
    """Version of torch; None if it is not installed, or in an environment of its own."""
    has_mlx: bool

    @classmethod
    def read(cls, trainer_python: str) -> Self:
        """Return the facts of this host and this environment, without importing torch."""
        torch = None if trainer_python else find_version("torch")
        return cls(platform.system(), platform.machine(), torch, find_version("mlx-lm") is not None)


@dataclass(frozen=True)
class HostHardware:
    """The GPUs of a host, and the queues that they and its CPU serve."""

    queues: tuple[Queue, ...]
    """The best hardware first."""
    gpus: tuple[Gpu, ...] = ()
    unused: str | None = None
    """Which hardware is not used, why, and what to do."""

    @property
    def description(self) -> str:
        """The queues with their devices in words, such as `cuda (2 × NVIDIA H200), cpu`."""
        devices = describe_devices([gpu.name for gpu in self.gpus])
        return ", ".join(f"{queue} ({devices})" if queue is Queue.cuda else queue for queue in self.queues)


def choose_queues(gpus: Sequence[Gpu], facts: HostFacts) -> HostHardware:
    """Return the queues that a host with these GPUs serves: its GPUs or Apple chip, and its CPU."""
    gpus = tuple(gpus)
    if gpus:
        if facts.torch is not None and facts.torch.endswith("+cpu"):
            found = describe_devices([gpu.name for gpu in gpus])
            unused = (
                f"This host has {found}, but the installed torch {facts.torch} is built for CPUs only. "
                "Install torch from PyPI, or from an index of CUDA wheels."
            )
            return HostHardware((Queue.cpu,), gpus, unused)
        return HostHardware((Queue.cuda, Queue.cpu), gpus)
    if (facts.system, facts.machine) == ("Darwin", "arm64"):
        if facts.has_mlx:
            return HostHardware((Queue.mlx, Queue.cpu))
        unused = "This host has an Apple chip, but mlx-lm is not installed: pip install '.[mlx]'."
        return HostHardware((Queue.cpu,), unused=unused)
    return HostHardware((Queue.cpu,))


def inspect_host() -> HostHardware:
    """Return the hardware of this host that `CUDA_VISIBLE_DEVICES` allows; `nvidia-smi` takes seconds."""
    gpus = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return choose_queues(gpus, HostFacts.read(get_settings().trainer_python))


@cache
def local_hardware() -> HostHardware:
    """Return the hardware of this host as it was at the first call."""
    return inspect_host()


def describe_devices(names: Sequence[str]) -> str:
    """Return the devices in words, such as `2 × NVIDIA H200 and 1 × NVIDIA L4`."""
    return " and ".join(f"{count} × {name}" for name, count in Counter(names).items())


def find_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
