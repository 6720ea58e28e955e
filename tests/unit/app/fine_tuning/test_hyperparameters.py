"""Automatic hyperparameters: enough steps for few rows, and few passes over many."""

from typing import Any

import pytest

from app.fine_tuning.hyperparameters import FineTuningMethod, choose_hyperparameters
from trainers.configs import parse_stage
from trainers.configs.training import TrainingConfig


def choose(method: FineTuningMethod, rows: int, **given: Any) -> Any:
    values: dict[str, Any] = {"stage": method.stage, "base": "org/base", "dataset": "dataset_x"}
    config = parse_stage(values | ({"rewards": [{"kind": "steps"}]} if method.stage == "grpo" else {}))
    assert isinstance(config, TrainingConfig)
    return choose_hyperparameters(method, given, rows, config)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch_size"),
    [(1, 25, 1), (10, 10, 1), (33, 4, 1), (100, 3, 2), (1000, 3, 16), (10_000, 2, 16), (100_000, 1, 16)],
)
def test_few_rows_are_repeated_and_many_are_not(rows: int, epochs: int, batch_size: int) -> None:
    chosen = choose(FineTuningMethod.supervised, rows)
    assert (chosen.values["n_epochs"], chosen.values["batch_size"]) == (epochs, batch_size)
    assert f"n_epochs = {epochs} (auto: " in chosen.explanation


def test_given_values_are_kept_and_called_so() -> None:
    chosen = choose(FineTuningMethod.dpo, 100, n_epochs=7, batch_size="auto", beta=0.5)
    assert (chosen.fields["epochs"], chosen.fields["beta"]) == (7, 0.5)
    assert "n_epochs = 7 (given)" in chosen.explanation


def test_a_step_of_reinforcement_has_several_completions_of_each_prompt() -> None:
    chosen = choose(FineTuningMethod.reinforcement, 100, compute_multiplier=0.5, eval_interval=3)
    assert (chosen.values["batch_size"], chosen.fields["num_generations"]) == (8, 4)
    assert (chosen.fields["batch_size"], chosen.fields["validate_every_steps"]) == (32, 3)
