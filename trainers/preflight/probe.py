"""A few real steps of a training stage, timed: what the whole run will take, cost and need."""

import json
import shutil
import subprocess
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.training import PreflightMode
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ProgramError

FOLDER = "probe"
WARM_UP_STEPS = 2
SECONDS_PER_HOUR = 3600


class ProbeFailed(ProgramError):
    """The stage's own program could not train the few steps."""


def run_probe(config: PreflightConfig, run_dir: Path, fit: dict[str, Any]) -> dict[str, Any]:
    """Train `probe_steps` steps in a directory of its own, which is removed, and tell what they took.

    The first two steps are left out of the time: they load kernels and fill caches. Raises ProbeFailed with
    the program's own error.
    """
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    steps = config.probe_steps + WARM_UP_STEPS
    total = _planned_steps(config, folder)
    peak = _train(config, folder, steps)
    seconds = _seconds_per_step(folder)
    tokens = _tokens(folder)
    shutil.rmtree(folder)
    hours = seconds * total / SECONDS_PER_HOUR
    estimated = fit["hosts"][0]["needed_bytes"]
    return {
        "steps": config.probe_steps,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_second": round(tokens / steps / seconds) if tokens else None,
        "total_steps": total,
        "estimated_seconds": round(hours * SECONDS_PER_HOUR, 1),
        "cost": None if config.price_per_hour is None else round(hours * config.price_per_hour, 4),
        "peak_bytes": peak,
        "estimated_bytes": estimated,
        "estimate_error": round(estimated / peak - 1, 3) if peak else None,
    }


def _command(config: PreflightConfig, path: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", f"trainers.{config.target.stage}", "--config", str(path), *more]


def _config(config: PreflightConfig, folder: Path, **changes: Any) -> Path:
    path = folder / "probe.json"
    values = config.target.model_dump(mode="json") | {"preflight": PreflightMode.off, **changes}
    files.write_json(path, values)
    return path


def _planned_steps(config: PreflightConfig, folder: Path) -> int:
    command = _command(config, _config(config, folder), "--dry-run")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _require_success(done.returncode, done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1])["steps"])


def _train(config: PreflightConfig, folder: Path, steps: int) -> int | None:
    """Peak memory in bytes: of the GPU if the program told it, else of its process."""
    path = _config(
        config,
        folder,
        max_steps=steps,
        log_every_steps=1,
        save_every_steps=steps + 1,
        **({"validation_dataset": None, "early_stopping_patience": None} if _validates(config) else {}),
    )
    with (folder / files.LOG).open("w") as log:
        child = subprocess.Popen(_command(config, path, "--run-dir", str(folder)), stdout=log, stderr=log)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _high_water(child.pid))
            try:
                child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    _require_success(child.returncode, (folder / files.LOG).read_text())
    result = files.read_result(folder)
    assert result is not None
    on_gpu = result["metrics"].get("peak_gpu_bytes")
    return int(on_gpu) if on_gpu else peak or None


def _validates(config: PreflightConfig) -> bool:
    return "validation_dataset" in type(config.target).model_fields


def _high_water(pid: int) -> int:
    """Most memory that a process has held, in bytes; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _require_success(status: int, log: str) -> None:
    if status == 0:
        return
    last = next((line for line in reversed(log.splitlines()) if " ERROR " in line), "it left no error")
    raise ProbeFailed(
        f"The few steps of the probe failed: {last.partition(' ERROR ')[2] or last}",
        "Correct what it names; the whole run would have failed alike.",
    )


def _seconds_per_step(folder: Path) -> float:
    """The median time between two steps, without those that warm up."""
    told = [line for line in files.read_lines(folder / files.EVENTS) if line["type"] == "metrics"]
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in told]
    between = [later - earlier for earlier, later in pairwise(times)]
    return max(median(between[WARM_UP_STEPS - 1 :]), 1e-6)


def _tokens(folder: Path) -> float:
    told = [line for line in files.read_lines(folder / files.EVENTS) if line["type"] == "metrics"]
    return float(told[-1]["values"].get("tokens") or 0)
