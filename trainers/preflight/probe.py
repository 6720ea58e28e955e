"""A few real steps of a training stage, to estimate time, cost and memory of the whole run."""

import json
import shutil
import subprocess
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.training import PreflightMode
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ProgramError
from trainers.runtime.launch_command import build_command
from trainers.training.diagnosis.peak_memory import GPU_BYTES, RESIDENT_BYTES, read_peak_resident

FOLDER = "probe"
WARM_UP_STEPS = 2
SECONDS_PER_HOUR = 3600


class ProbeFailed(ProgramError):
    """The stage's program failed in the steps of the probe."""


def run_probe(config: PreflightConfig, run_dir: Path, memory: dict[str, Any] | None) -> dict[str, Any]:
    """Train `probe_steps` steps in a temporary run directory, and return their time, memory and cost.

    Two more steps run before the measured ones, because the first steps load kernels and fill caches. Raises
    ProbeFailed with the error of the program.
    """
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    steps = config.probe_steps + WARM_UP_STEPS
    total = _plan_steps(config, folder)
    measure, peak = _train_steps(config, folder, steps)
    metrics = [line for line in files.read_lines(folder / files.EVENTS) if line["type"] == "metrics"]
    seconds = _median_step_seconds(metrics)
    tokens = float(metrics[-1]["values"].get("tokens") or 0)
    shutil.rmtree(folder)
    hours = seconds * total / SECONDS_PER_HOUR
    estimated = memory["hosts"][0]["needed_bytes"] if memory is not None else None
    return {
        "steps": config.probe_steps,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_second": round(tokens / steps / seconds) if tokens else None,
        "total_steps": total,
        "estimated_seconds": round(hours * SECONDS_PER_HOUR, 1),
        "cost": None if config.price_per_hour is None else round(hours * config.price_per_hour, 4),
        "peak_bytes": peak,
        "peak_measure": measure,
        "estimated_bytes": estimated,
        "estimate_error": round(estimated / peak - 1, 3) if peak and estimated else None,
    }


def _write_config(config: PreflightConfig, folder: Path, **changes: Any) -> Path:
    path = folder / "probe.json"
    values = config.target.model_dump(mode="json") | {"preflight": PreflightMode.off, **changes}
    files.write_json(path, values)
    return path


def _plan_steps(config: PreflightConfig, folder: Path) -> int:
    path = _write_config(config, folder)
    command = [sys.executable, "-m", f"trainers.{config.target.stage}", "--config", str(path), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _require_success(done.returncode, done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1])["steps"])


def _train_steps(config: PreflightConfig, folder: Path, steps: int) -> tuple[str, int | None]:
    """Train and return the peak memory of the rank that held most, and the name of what it measures.

    A program that does not report it itself, such as one of MLX, is measured from outside.
    """
    own = type(config.target).model_fields
    path = _write_config(
        config,
        folder,
        max_steps=steps,
        log_every_steps=1,
        save_every_steps=steps + 1,
        **{name: None for name in ("validation_dataset", "early_stopping_patience") if name in own},
    )
    with (folder / files.LOG).open("w") as log:
        command = build_command(sys.executable, config.target, path, folder)
        child = subprocess.Popen(command, stdout=log, stderr=log)
        peaks: dict[int, int] = {}
        while child.poll() is None:
            peaks |= _peak_bytes_by_process(child.pid)
            try:
                child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    _require_success(child.returncode, (folder / files.LOG).read_text())
    result = files.read_result(folder)
    assert result is not None
    reported = ((name, result["metrics"].get(name)) for name in (GPU_BYTES, RESIDENT_BYTES))
    measured = next(((name, int(peak)) for name, peak in reported if peak), None)
    return measured or (RESIDENT_BYTES, sum(peaks.values()) or None)


def _peak_bytes_by_process(pid: int) -> dict[int, int]:
    """Return the peak resident memory of a process and its ranks, by process id."""
    try:
        ranks = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        ranks = []
    return {
        found: peak for found in [pid, *(rank.pid for rank in ranks)] if (peak := read_peak_resident(found))
    }


def _require_success(status: int, log: str) -> None:
    if status == 0:
        return
    last = next(
        (line for line in reversed(log.splitlines()) if " ERROR " in line), "the log contains no error"
    )
    raise ProbeFailed(
        f"The steps of the probe failed: {last.partition(' ERROR ')[2] or last}",
        "Correct the cause: the whole run would fail in the same way.",
    )


def _median_step_seconds(metrics: list[dict[str, Any]]) -> float:
    """Return the median time between two steps, without those of the warm-up."""
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in metrics]
    seconds = [later - earlier for earlier, later in pairwise(times)]
    return max(median(seconds[WARM_UP_STEPS - 1 :]), 1e-6)
