"""Validation while training: the loss on held-out rows, early stopping, and the best model kept.

All that decides is in the Trainer's log history, and the best model travels within each checkpoint, so a run
that another worker goes on with decides alike.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.configs.validation import ValidatedTrainingConfig
from trainers.runtime import run_dir as files
from trainers.runtime.program import is_main_process

BEST_MODEL = "best"
# The Trainer takes any folder of adapter weights right in a checkpoint for one more adapter to load.
PACKED = "validation/best"
EVAL_LOSS = "eval_loss"

logger = logging.getLogger("trainers")


class IsolatedValidationMixin:
    """A mixin for trainers that go on as if they had not validated."""

    args: Any

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """The Trainer's own: its data loader draws a seed, which would shift all dropout that follows."""
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return super().evaluate(*arguments, **options)  # type: ignore[misc]


class BestModelCallback(TrainerCallback):
    """Saves the model whenever the validation loss is the lowest so far, and stops when it stays higher."""

    def __init__(
        self, config: ValidatedTrainingConfig, run_dir: Path, write_model: Callable[[Path], None]
    ) -> None:
        self._config, self._run_dir, self._write_model = config, run_dir, write_model

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or EVAL_LOSS not in logs:
            return
        losses = validation_losses(state)
        if best_step(losses) == state.global_step and self._config.keep_best:
            self._write_model(self._run_dir / BEST_MODEL)
        patience = self._config.early_stopping_patience
        if (
            patience is not None
            and count_validations_without_improvement(losses, self._config.early_stopping_min_improvement)
            >= patience
        ):
            if is_main_process():
                logger.info("The validation loss has not fallen %d times in a row: stopping.", patience)
            control.should_save = control.should_training_stop = True


def validation_losses(state: TrainerState) -> dict[int, float]:
    """Validation loss by step, of earlier attempts too."""
    return {entry["step"]: entry[EVAL_LOSS] for entry in state.log_history if EVAL_LOSS in entry}


def best_step(losses: dict[int, float]) -> int | None:
    """The step with the lowest loss, the first of equal ones."""
    return min(losses, key=lambda step: (losses[step], step), default=None)


def count_validations_without_improvement(losses: dict[int, float], min_improvement: float) -> int:
    """How many validations in a row, up to the last one, were not lower than the best before by so much."""
    waited, best = 0, float("inf")
    for loss in losses.values():
        is_better = loss < best - min_improvement
        waited = 0 if is_better else waited + 1
        best = loss if is_better else best
    return waited


def has_stopped_early(config: Any, state: TrainerState) -> bool:
    """Whether training ended because the validation loss no longer fell."""
    if not isinstance(config, ValidatedTrainingConfig) or config.early_stopping_patience is None:
        return False
    waited = count_validations_without_improvement(
        validation_losses(state), config.early_stopping_min_improvement
    )
    return waited >= config.early_stopping_patience


def pack_best_model(run_dir: Path, checkpoint: Path) -> None:
    """Put the best model into a checkpoint that is being written, by hard links where there can be any."""
    if (run_dir / BEST_MODEL).is_dir():
        shutil.copytree(run_dir / BEST_MODEL, checkpoint / PACKED, copy_function=_link)


def unpack_best_model(run_dir: Path, checkpoint: Path) -> None:
    """Take the best model out of the checkpoint from which training resumes."""
    shutil.rmtree(run_dir / BEST_MODEL, ignore_errors=True)
    if (checkpoint / PACKED).is_dir():
        files.publish_folder(run_dir / BEST_MODEL, lambda folder: _fill(folder, checkpoint / PACKED))


def _fill(folder: Path, source: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
