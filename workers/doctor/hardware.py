"""Checks of a host's GPUs or Apple chip, and of the packages that compute on them."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.settings import Settings
from app.workers.gpus import Gpu, find_gpus
from app.workers.host_hardware import describe_devices, find_version
from workers.doctor.check_result import CheckResult

# The first import of torch on a host reads some gigabytes of CUDA libraries.
IMPORT_TIMEOUT_SECONDS = 180
NVIDIA_VENDOR = "0x10de"
# PCI classes of display controllers and of processing accelerators begin with these digits.
GPU_CLASSES = ("0x03", "0x12")
TORCH = "torch"
CUDA_PROGRAM = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
METAL_PROGRAM = "import mlx.core as mx; print(int(mx.metal.is_available()))"
CUDA_FIX = (
    "Install torch built for the driver's CUDA version (`nvidia-smi` shows it at the upper right), or a "
    "newer driver; after an update of the driver, restart the host."
)


def check_hardware(settings: Settings) -> Iterator[CheckResult]:
    """Yield the checks of drivers, of CUDA in torch, and of an Apple chip."""
    gpus = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    yield _check_driver(gpus)
    yield _check_torch(gpus, settings.trainer_python)
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        yield _check_apple_chip()


def _check_driver(gpus: Sequence[Gpu]) -> CheckResult:
    name = "driver"
    if gpus:
        return CheckResult.ok(name, describe_devices([gpu.name for gpu in gpus]))
    has_gpu = has_nvidia_device()
    if shutil.which("nvidia-smi") is None:
        if has_gpu:
            return CheckResult.error(
                name,
                "an NVIDIA GPU, but no nvidia-smi",
                "Install NVIDIA's driver, such as `apt-get install nvidia-driver-570-server`, and restart.",
            )
        return CheckResult.ok(name, "no NVIDIA GPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None and find_gpus(None):
        return CheckResult.warning(
            name, "CUDA_VISIBLE_DEVICES hides all GPUs", "Unset CUDA_VISIBLE_DEVICES to use them."
        )
    return CheckResult.error(
        name,
        "nvidia-smi is installed, but reports no GPU that can be used",
        "Run `nvidia-smi`: it prints what fails. Load the driver (`modprobe nvidia`) or restart the host.",
    )


def has_nvidia_device(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Return whether the PCI bus has a GPU of NVIDIA, with or without a driver."""
    return any(
        vendor.read_text().strip() == NVIDIA_VENDOR
        and vendor.with_name("class").read_text().startswith(GPU_CLASSES)
        for vendor in devices.glob("*/vendor")
    )


def _check_torch(gpus: Sequence[Gpu], trainer_python: str) -> CheckResult:
    """Check that torch reaches the GPUs; it is imported, in a child, only where there are some."""
    name = TORCH
    version = None if trainer_python else find_version("torch")
    if version is None and not trainer_python:
        return CheckResult.warning(
            name,
            "torch is not installed: this worker runs only stages without it",
            "Install the extra `trainer`, or set TUNESMITH_TRAINER_PYTHON to an interpreter that has it.",
        )
    if not gpus:
        return CheckResult.ok(name, f"torch {version}" if version else f"in {trainer_python}")
    if version is not None and version.endswith("+cpu"):
        return CheckResult.error(name, f"torch {version} is built for CPUs only", CUDA_FIX)
    count, fault = _run_python(trainer_python or sys.executable, CUDA_PROGRAM)
    if fault is not None:
        return CheckResult.error(name, f"torch cannot be imported: {fault}", CUDA_FIX)
    if count < len(gpus):
        return CheckResult.error(name, f"CUDA answers on {count} of {len(gpus)} GPUs", CUDA_FIX)
    return CheckResult.ok(name, f"torch {version or ''}: CUDA answers on {count} of {len(gpus)} GPUs")


def _check_apple_chip() -> CheckResult:
    name, fix = "apple chip", "Install the extra `mlx`: pip install 'tunesmith[mlx]'."
    version = find_version("mlx-lm")
    if version is None:
        return CheckResult.error(name, "mlx-lm is not installed", fix)
    metal, fault = _run_python(sys.executable, METAL_PROGRAM)
    if fault is not None or not metal:
        return CheckResult.error(name, f"Metal is unavailable to mlx: {fault or 'no device'}", fix)
    return CheckResult.ok(name, f"mlx-lm {version}: Metal is available")


def _run_python(python: str, program: str) -> tuple[int, str | None]:
    """Return the number that a program prints, or the last line of its error."""
    try:
        done = subprocess.run(
            [python, "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return 0, str(error)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2]
    return (int(last), None) if done.returncode == 0 and last.isdigit() else (0, last or "no output")
