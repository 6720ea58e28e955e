"""One training stage in this process, measured: losses, tokens per second, peak memory and its estimate."""

import gc
import shutil
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from tests.benchmarks.gpu.machine import peak_flops
from trainers import dpo, grpo, sft
from trainers.configs import parse_stage
from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.preflight.memory.estimate import estimate_memory
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter

PROGRAMS: Final[dict[str, Any]] = {"sft": sft.run, "dpo": dpo.run, "grpo": grpo.run}
# The first steps load kernels and fill the allocator's caches.
WARM_UP_STEPS: Final = 2


def run_stage(values: dict[str, Any], folder: Path, longest_tokens: int | None = None) -> dict[str, Any]:
    """Train a stage and return what was measured; raises what the stage raises.

    The estimate of memory is for sequences of `longest_tokens`, which are max_length by default.
    """
    config = parse_stage(
        {"preflight": "off", "log_every_steps": 1, "save_every_steps": 100_000, "warmup_ratio": 0.0, **values}
    )
    assert isinstance(config, TrainingConfig)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reset_memory()
    started = time.monotonic()
    with EventWriter(folder / files.EVENTS) as events:
        result = PROGRAMS[config.stage](config, folder, events)
    seconds = time.monotonic() - started
    lines = list(files.read_lines(folder / files.EVENTS))
    measured = measure_steps([line for line in lines if line["type"] == "metrics"])
    measured |= _compare_memory(config, result["metrics"], longest_tokens)
    shutil.rmtree(folder)
    return measured | {
        "warnings": [line["code"] for line in lines if line["type"] == "warning"],
        "seconds": round(seconds, 1),
    }


def measure_steps(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return losses, the median seconds of a step and tokens per second, without the first steps."""
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    tokens = [float(line["values"].get("tokens") or 0) for line in lines]
    first = min(WARM_UP_STEPS, len(lines) - 2)
    span = times[-1] - times[first]
    return {
        "losses": [round(float(line["values"]["loss"]), 6) for line in lines],
        "gradient_norms": [round(float(line["values"]["grad_norm"] or 0.0), 6) for line in lines],
        "rewards": [round(line["values"]["reward"], 4) for line in lines if "reward" in line["values"]],
        "seconds_per_step": round(median([later - earlier for earlier, later in pairwise(times[first:])]), 4),
        "tokens_per_step": round((tokens[-1] - tokens[first]) / (len(lines) - 1 - first)),
        "tokens_per_second": round((tokens[-1] - tokens[first]) / span, 1) if span else None,
    }


def add_mfu(measured: dict[str, Any], parameters: int, is_lora: bool, device: torch.device) -> dict[str, Any]:
    """Add the share of the GPU's peak that the model's matrix products take.

    Each weight costs 2 FLOP per token forward and 2 backward for the gradient of its input; a trained weight
    2 more. Attention and recomputation are not counted, as NeMo AutoModel does in its published figures.
    """
    peak, rate = peak_flops(device), measured["tokens_per_second"]
    if peak is None or rate is None:
        return measured | {"mfu": None}
    return measured | {"mfu": round(rate * (4 if is_lora else 6) * parameters / peak, 4)}


def reset_memory() -> None:
    """Free what earlier cases left, and start counting the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _compare_memory(config: TrainingConfig, metrics: dict[str, Any], longest: int | None) -> dict[str, Any]:
    """Return the peak and the estimate; on a GPU without its program part, as torch counts tensors only."""
    tokens = longest or getattr(config, "max_length", None) or 512
    estimate = estimate_memory(config, [], tokens)
    peak = metrics.get("peak_gpu_bytes") or metrics.get("peak_resident_bytes")
    if estimate is None or not peak:
        return {"peak_bytes": peak}
    host = estimate["hosts"][0]
    needed = host["needed_bytes"] - (host["parts"]["program"] if "peak_gpu_bytes" in metrics else 0)
    return {
        "peak_bytes": peak,
        "peak_measure": "gpu" if "peak_gpu_bytes" in metrics else "resident",
        "estimated_bytes": needed,
        "estimate_error": round(needed / peak - 1, 3),
        "parameters": estimate["parameters"],
        "is_lora": isinstance(config.tuning, LoraTuning),
    }
