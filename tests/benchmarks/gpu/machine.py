"""The machine of a measurement: its hardware, its libraries, and what it lacks, each with a reason."""

import platform
from importlib import metadata
from inspect import signature
from typing import Any, Final

import torch

LIBRARIES: Final = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "flash-attn",
    "kernels",
    "liger-kernel",
    "triton",
)
# Dense bf16 FLOP/s by name, without sparsity, from the vendor's data sheets.
PEAK_FLOPS: Final = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the hardware and the versions of libraries, as the results name them."""
    gpu = None
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        gpu = {
            "name": found.name,
            "memory_bytes": found.total_memory,
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda,
            "peak_flops": peak_flops(device),
        }
    return {
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name)) is not None},
    }


def peak_flops(device: torch.device) -> float | None:
    """Return the peak of the GPU in bf16; None for a CPU or a GPU without a known data sheet."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)


def find_missing(device: torch.device, is_tiny: bool) -> dict[str, str]:
    """Return why each feature that a case may need is not there; features that are there are left out."""
    missing = {}
    try:
        from trainers import dpo, grpo, sft  # noqa: F401
    except (ImportError, AttributeError, RuntimeError) as error:
        missing["trainers"] = f"the trainers cannot be imported: {type(error).__name__}: {error}"
    if _version("bitsandbytes") is None:
        missing["nf4"] = "bitsandbytes is not installed"
    if not is_tiny and not _has_varlen():
        missing["varlen"] = f"torch {torch.__version__} has no varlen_attn with a window and a scale"
    if device.type != "cuda":
        missing["liger"] = "kernels of liger-kernel need a GPU"
    elif _version("liger-kernel") is None:
        missing["liger"] = "liger-kernel is not installed"
    if device.type != "cuda" and not is_tiny:
        missing["gpu"] = "torch finds no GPU"
    return missing


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= signature(varlen_attn).parameters.keys()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
