"""Hyperparameters in OpenAI's terms: `"auto"` becomes a number by a formula, which an event states."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trainers.configs.training import TrainingConfig

AUTO = "auto"
# The rules of OpenAI's guide: three passes, more over few rows and fewer over many.
EPOCHS, MAX_EPOCHS = 3, 25
MIN_ROW_PASSES, MAX_ROW_PASSES = 100, 25_000
# A training stage learns little in fewer steps. Above 16 rows, the default learning rates are not proven.
MIN_STEPS, MAX_BATCH_ROWS = 100, 16
# A step of reinforcement learning generates this many completions of each prompt, for that many prompts.
GENERATIONS, PROMPTS = 8, 8


class FineTuningMethod(StrEnum):
    """The method of a fine-tuning job."""

    supervised = "supervised"
    dpo = "dpo"
    reinforcement = "reinforcement"

    @property
    def stage(self) -> str:
        """The stage that carries it out."""
        return {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}[self.value]


@dataclass(frozen=True)
class ChosenHyperparameters:
    """A number for each hyperparameter, the stage's fields that follow, and how they were chosen."""

    values: dict[str, int | float]
    fields: dict[str, Any]
    explanation: str


def choose_hyperparameters(
    method: FineTuningMethod, given: Mapping[str, Any], rows: int, config: TrainingConfig
) -> ChosenHyperparameters:
    """Choose a number for each hyperparameter that is absent or `"auto"`.

    `config` is the stage with the operator's fields alone, whose learning rate is that of multiplier 1.
    """
    chosen = _Choice(given)
    epochs = int(chosen.pick("n_epochs", *_auto_epochs(method, rows)))
    batch_size = int(chosen.pick("batch_size", *_auto_batch_size(method, rows, epochs)))
    multiplier = chosen.pick("learning_rate_multiplier", 1.0, "1")
    assert config.learning_rate is not None, "a training stage fills its default"
    learning_rate = multiplier * config.learning_rate
    chosen.add(
        f"learning_rate = {learning_rate:.4g} = {multiplier:g} × {config.learning_rate:g}, the rate of "
        f"{config.stage} with {config.tuning.method} tuning"
    )
    fields = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    if method is FineTuningMethod.dpo:
        fields["beta"] = chosen.pick("beta", 0.1, "0.1")
    if method is FineTuningMethod.reinforcement:
        compute = chosen.pick("compute_multiplier", 1.0, "1")
        n_generations = max(2, round(GENERATIONS * compute))
        chosen.add(
            f"each prompt gets {n_generations} completions = max(2, {GENERATIONS} × compute_multiplier)"
        )
        fields |= {"num_generations": n_generations, "batch_size": batch_size * n_generations}
        fields |= chosen.copy(
            {"eval_interval": "validate_every_steps", "eval_samples": "max_validation_rows"}
        )
    noun = "row" if rows == 1 else "rows"
    return ChosenHyperparameters(
        chosen.values, fields, f"Hyperparameters for {rows} {noun}: {'; '.join(chosen.reasons)}."
    )


class _Choice:
    """The values so far, and a sentence part for each."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self.values: dict[str, int | float] = {}
        self.reasons: list[str] = []

    def pick(self, name: str, automatic: int | float, formula: str) -> int | float:
        value = self._given.get(name)
        if value is None or value == AUTO:
            self.values[name] = automatic
            self.reasons.append(f"{name} = {automatic:g} (auto: {formula})")
        else:
            self.values[name] = value
            self.reasons.append(f"{name} = {value:g} (given)")
        return self.values[name]

    def copy(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Return the stage's fields for values that were given."""
        given = {name: self._given[name] for name in names if self._given.get(name) not in (None, AUTO)}
        self.values |= given
        self.reasons += [f"{name} = {value:g} (given)" for name, value in given.items()]
        return {names[name]: value for name, value in given.items()}

    def add(self, reason: str) -> None:
        self.reasons.append(reason)


def _auto_epochs(method: FineTuningMethod, rows: int) -> tuple[int, str]:
    if method is FineTuningMethod.reinforcement:
        return 1, "1"
    if rows * EPOCHS < MIN_ROW_PASSES:
        formula = f"min({MAX_EPOCHS}, ceil({MIN_ROW_PASSES} / {rows}))"
        return min(MAX_EPOCHS, math.ceil(MIN_ROW_PASSES / rows)), formula
    if rows * EPOCHS > MAX_ROW_PASSES:
        return max(1, MAX_ROW_PASSES // rows), f"max(1, {MAX_ROW_PASSES} // {rows})"
    return EPOCHS, str(EPOCHS)


def _auto_batch_size(method: FineTuningMethod, rows: int, epochs: int) -> tuple[int, str]:
    if method is FineTuningMethod.reinforcement:
        return min(PROMPTS, rows), f"min({PROMPTS}, {rows})"
    passes = rows * epochs
    power = max(1, passes // MIN_STEPS).bit_length() - 1
    formula = f"the power of 2 up to {MAX_BATCH_ROWS} that leaves {MIN_STEPS} steps of {rows} × {epochs}"
    return min(MAX_BATCH_ROWS, 1 << power), formula
