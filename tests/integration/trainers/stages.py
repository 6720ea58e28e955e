"""Stages in the process of the test, with a record of their batches.

A program costs seconds of imports: tests start one where its end, its output or its signals matter.
"""

import hashlib
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from trainers import distill, dpo, evaluate, grpo, kto, sft
from trainers.configs import AnyStage, StageKind, TrainingConfig, parse_stage
from trainers.lm_eval import __main__ as lm_eval_program
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopRequested

WORK: dict[str, Any] = {
    "sft": sft.run,
    "dpo": dpo.run,
    "kto": kto.run,
    "grpo": grpo.run,
    "distill": distill.run,
    "evaluate": evaluate.run,
    "lm_eval": lm_eval_program.run,
}


class Recorder:
    """The inputs of each forward pass, and a hash of every micro-batch by optimizer step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: dict[int, list[str]] = {}
        self.inputs: list[dict[str, Any]] = []
        for trainer in (sft.RowTrainer, dpo.PairTrainer):
            monkeypatch.setattr(trainer, "training_step", self._recording(trainer.training_step))

    def _recording(self, training_step: Any) -> Any:
        def step(trainer: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
            digest = hashlib.sha256(inputs["input_ids"].numpy().tobytes()).hexdigest()
            self.batches.setdefault(trainer.state.global_step, []).append(digest)
            self.inputs.append({name: value for name, value in inputs.items() if hasattr(value, "clone")})
            return training_step(trainer, model, inputs, *more)

        return step


def run_stage(values: dict[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """Run the stage and return its result, or None if it was stopped."""
    config = parse_stage(values)
    run_dir.mkdir(parents=True, exist_ok=True)
    with EventWriter(run_dir / files.EVENTS) as report:
        try:
            result: dict[str, Any] = _program(config)(config, run_dir, report)
        except StopRequested:
            return None
    files.write_result(run_dir, result)
    return result


def _program(config: AnyStage) -> Any:
    if not isinstance(config, TrainingConfig) or not config.uses_mlx:
        return WORK[config.stage]
    # MLX is an extra.
    return import_module(StageKind(config.stage).stage.mlx_program or "").run


def at_checkpoint(uninterrupted: Path, run_dir: Path, step: int) -> None:
    """Create the run directory that a crash directly after a checkpoint leaves."""
    run_dir.mkdir()
    lines = [
        line for line in files.read_lines(uninterrupted / files.CHECKPOINT_LINES) if line["step"] <= step
    ]
    files.append_lines(run_dir / files.CHECKPOINT_LINES, lines)
    path = f"{files.CHECKPOINTS}/step-{step:08d}"
    shutil.copytree(uninterrupted / path, run_dir / path)
