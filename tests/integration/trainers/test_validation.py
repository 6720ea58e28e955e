"""Goal: validation picks the best model, stops early, and does not change training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.integration.trainers.conftest import UNEQUAL, events, losses
from tests.integration.trainers.stages import at_checkpoint, run_stage
from trainers.configs import parse_stage
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.training.validation import best_step, count_validations_without_improvement

Stage = dict[str, Any]
Write = Callable[[list[dict[str, Any]]], str]

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def stage(short_lora: Stage) -> Stage:
    return short_lora


@pytest.fixture
def validated(stage: Stage, held_out_rows: str, write_rows: Write) -> Stage:
    """Return a stage whose first validation is the best by far, whatever the rounding of the CPU.

    With a rate that ends near a minimum, the best step depends on the last digits of the losses.
    """
    return stage | {
        "dataset": write_rows([dict(row) for row in generate_problems(8, ProblemSplit.train, seed=5)]),
        "validation_dataset": held_out_rows,
        "validate_every_steps": 2,
        "save_every_steps": 3,
        "max_steps": 24,
        "learning_rate": 0.03,
        "schedule": "constant",
        "max_validation_rows": 16,
    }


def test_the_model_of_the_lowest_validation_loss_is_published(validated: Stage, tmp_path: Path) -> None:
    result = run_stage(validated, tmp_path)
    assert result is not None
    seen = _validation_losses(tmp_path)
    best = best_step(seen)
    assert best is not None and best < 24 and seen[24] > seen[best] + 0.1
    assert (result["metrics"]["best_step"], result["metrics"]["best_validation_loss"]) == (best, seen[best])
    again = run_stage(validated | {"max_steps": best, "keep_best": False}, tmp_path / "again")
    assert again is not None
    published, expected = (load_file(path / "model" / ADAPTER) for path in (tmp_path, tmp_path / "again"))
    assert all(torch.equal(published[name], expected[name]) for name in expected)


def test_training_stops_when_the_validation_loss_no_longer_falls(validated: Stage, tmp_path: Path) -> None:
    result = run_stage(validated | {"early_stopping_patience": 2}, tmp_path)
    assert result is not None
    seen = _validation_losses(tmp_path)
    assert count_validations_without_improvement(seen, 0.0) == 2
    assert result["metrics"]["steps"] == max(seen) < 24


def test_a_resumed_run_stops_early_and_keeps_the_best_as_if_it_had_never_stopped(
    validated: Stage, tmp_path: Path
) -> None:
    config = validated | {"early_stopping_patience": 3, "keep_checkpoints": 100}
    uninterrupted = run_stage(config, tmp_path / "whole")
    assert uninterrupted is not None
    for step in (3, 6, uninterrupted["metrics"]["steps"]):
        resumed = tmp_path / f"from-{step}"
        at_checkpoint(tmp_path / "whole", resumed, step)
        result = run_stage(config, resumed)
        assert result is not None
        assert result["metrics"] | UNEQUAL == uninterrupted["metrics"] | UNEQUAL
        assert (resumed / "model" / ADAPTER).read_bytes() == (
            tmp_path / "whole" / "model" / ADAPTER
        ).read_bytes()


@pytest.mark.parametrize("noise", [{"tuning": {"rank": 4, "dropout": 0.2}}, {"neftune_alpha": 5}], ids=str)
def test_validation_and_checkpoints_leave_every_loss_as_it_was(
    stage: Stage, noise: Stage, held_out_rows: str, tmp_path: Path
) -> None:
    stage |= noise
    run_stage(stage, tmp_path / "alone")
    validation = {"validation_dataset": held_out_rows, "validate_every_steps": 2, "save_every_steps": 2}
    run_stage(stage | validation, tmp_path / "validated")
    assert losses(tmp_path / "validated") == losses(tmp_path / "alone")


def test_patience_without_a_validation_dataset_is_refused(stage: Stage) -> None:
    with pytest.raises(ValidationError, match="needs a validation_dataset"):
        parse_stage(stage | {"early_stopping_patience": 2})


def test_dpo_validates_and_keeps_its_best(stage: Stage, write_rows: Write, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {n} + 1?", "chosen": f"#### {n + 1}", "rejected": f"#### {n}"} for n in range(24)
    ]
    config = stage | {"stage": "dpo", "dataset": write_rows(rows[:16]), "max_length": 128}
    validation = {"validation_dataset": write_rows(rows[16:]), "validate_every_steps": 4}
    result = run_stage(config | validation, tmp_path)
    assert result is not None
    assert set(_validation_losses(tmp_path)) == {4, 8}
    assert result["metrics"]["best_step"] in (4, 8)


def _validation_losses(run_dir: Path) -> dict[int, float]:
    validations = [event for event in events(run_dir, "metrics") if "validation_loss" in event["values"]]
    return {event["step"]: event["values"]["validation_loss"] for event in validations}
