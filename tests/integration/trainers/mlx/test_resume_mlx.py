"""Goal: a run with MLX that is killed resumes bit for bit. Method: kill -9 of a process, then compare runs.

    pytest -m slow tests/integration/trainers/mlx/test_resume_mlx.py

Processes are forked from this one, which itself never computes with MLX: a program would import for seconds.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import assert_same_run, events, losses
from tests.integration.trainers.stages import run_stage

stage_module = pytest.importorskip("trainers.mlx.training.stage")
pytest.importorskip("trainers.mlx.sft")

LORA = {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.2}
# 45 rows in steps of 8, each of 4 micro-batches: epochs end within a step.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"tuning": LORA},
    "rslora": {"tuning": LORA | {"rslora": True}},
    "dora": {"tuning": LORA | {"dora": True}},
    "4bit": {"tuning": LORA | {"quantization": "4bit"}},
    "4bit-dora": {"tuning": LORA | {"quantization": "4bit", "dora": True}},
    "full": {"tuning": {"method": "full"}, "learning_rate": 1e-3, "weight_decay": 0.1},
    "recomputed": {"tuning": LORA, "activation_checkpointing": True},
    "whole-steps": {"tuning": LORA, "micro_batch_size": 8},
    "validated": {"tuning": LORA, "validate_every_steps": 3},
    "cosine": {"tuning": LORA, "schedule": "cosine", "warmup_ratio": 0.3},
}
ROWS = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(45)]


@pytest.mark.slow
@pytest.mark.parametrize("is_compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_ends_with_the_same_weights(
    variant: str,
    is_compiled: bool,
    starter: Path,
    write_rows: Callable[[list[dict[str, Any]]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage_module, "uses_compilation", lambda: is_compiled)
    rows = write_rows(ROWS)
    stage: dict[str, Any] = {
        "stage": "sft",
        "backend": "mlx",
        "base": str(starter),
        "dataset": rows,
        "preflight": "off",
    }
    stage |= {"batch_size": 8, "micro_batch_size": 2, "log_every_steps": 1, "save_every_steps": 4}
    stage |= {"max_steps": 14, "learning_rate": 5e-3, "max_length": 128} | VARIANTS[variant]
    if "validate_every_steps" in stage:
        stage["validation_dataset"] = rows
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert wait_for_end(start(stage, whole)) == 0
    process = start(stage, killed)
    deadline = time.monotonic() + 200
    while len(losses(killed)) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert wait_for_end(process) == -signal.SIGKILL
    assert wait_for_end(start(stage, killed)) == 0
    assert [event["exactness"] for event in events(killed, "resumed")] == ["exact"]
    weights = "model.safetensors" if variant == "full" else "adapter_model.safetensors"
    assert_same_run(killed, whole, weights)


def start(stage: dict[str, Any], run_dir: Path) -> int:
    """Run the stage in a forked process, and return its id; it exits with 0 if the stage succeeded."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = 0 if run_stage(stage, run_dir) is not None else 75
        finally:
            os._exit(status)
    return process


def wait_for_end(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
