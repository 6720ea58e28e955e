"""Validation during training: the loss on held-out rows, early stopping, and the best model.

All decisions depend on the Trainer's log history, and each checkpoint contains the best model so far, so a
run that resumes on another host decides as if it had not been interrupted.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.configs.training import TrainingConfig
from trainers.configs.validation import MAX_LOSS_BLOCKS, ValidatedTrainingConfig
from trainers.runtime import run_dir as files
from trainers.runtime.program import is_main_process

BEST_MODEL = "best"
# Not directly in the checkpoint: there the Trainer loads any folder of adapter weights as one more adapter.
PACKED = "validation/best"
EVAL_LOSS = "eval_loss"
BLOCK_LOSSES = "block_losses"

logger = logging.getLogger("trainers")


class IsolatedValidationMixin:
    """A Trainer whose training is the same with and without validation."""

    args: Any
    state: TrainerState

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate with a forked random state: the data loader draws a seed, which would change dropout."""
        device = self.args.device
        self._batch_losses: list[torch.Tensor] = []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            metrics = super().evaluate(*arguments, **options)  # type: ignore[misc]
        self._log_block_losses()
        return metrics

    def prediction_step(self, *arguments: Any, **options: Any) -> Any:
        """Record the loss of a validation batch."""
        step = super().prediction_step(*arguments, **options)  # type: ignore[misc]
        if step[0] is not None:
            self._batch_losses.append(step[0].detach().float().mean())
        return step

    def _log_block_losses(self) -> None:
        """Add the losses of blocks of rows to the entry of the best validation in the Trainer's log.

        Checkpoints contain the log, so the losses survive an interruption. Of several processes, each sees
        a part of the rows only.
        """
        best = best_step(validation_losses(self.state))
        if best != self.state.global_step or self.args.world_size > 1:
            return
        for entry in self.state.log_history:
            entry.pop(BLOCK_LOSSES, None)
            if entry["step"] == best and EVAL_LOSS in entry:
                entry[BLOCK_LOSSES] = mean_blocks(self._batch_losses)


class BestModelCallback(TrainerCallback):
    """Saves the model whenever the validation loss is the lowest so far, and stops early."""

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
        if best_step(validation_losses(state)) == state.global_step and self._config.keep_best:
            self._write_model(self._run_dir / BEST_MODEL)
        if has_stopped_early(self._config, state):
            if is_main_process():
                patience = self._config.early_stopping_patience
                logger.info("Stopping early: the last %d validations did not improve the loss.", patience)
            control.should_save = control.should_training_stop = True


def validation_losses(state: TrainerState) -> dict[int, float]:
    """Return the validation loss by step, including earlier attempts."""
    return {entry["step"]: entry[EVAL_LOSS] for entry in state.log_history if EVAL_LOSS in entry}


def mean_blocks(batch_losses: Sequence[torch.Tensor]) -> list[float]:
    """Return the mean losses of at most `MAX_LOSS_BLOCKS` blocks of consecutive batches."""
    size = -(-len(batch_losses) // MAX_LOSS_BLOCKS) or 1
    blocks = [batch_losses[start : start + size] for start in range(0, len(batch_losses), size)]
    return [float(torch.stack(list(block)).mean()) for block in blocks]


def best_block_losses(state: TrainerState) -> list[float]:
    """Return the losses of blocks of validation rows at the best step; empty if there are none."""
    found = [entry[BLOCK_LOSSES] for entry in state.log_history if BLOCK_LOSSES in entry]
    return list(found[-1]) if found else []


def best_step(losses: dict[int, float]) -> int | None:
    """Return the step with the lowest loss, the first of equal ones."""
    return min(losses, key=lambda step: (losses[step], step), default=None)


def count_validations_without_improvement(losses: dict[int, float], min_improvement: float) -> int:
    """Return how many of the last validations were not better than the best before by `min_improvement`."""
    count, best = 0, float("inf")
    for loss in losses.values():
        is_better = loss < best - min_improvement
        count = 0 if is_better else count + 1
        best = loss if is_better else best
    return count


def has_stopped_early(config: TrainingConfig, state: TrainerState) -> bool:
    """Return whether the validation loss has not improved for `early_stopping_patience` validations."""
    if not isinstance(config, ValidatedTrainingConfig) or config.early_stopping_patience is None:
        return False
    count = count_validations_without_improvement(
        validation_losses(state), config.early_stopping_min_improvement
    )
    return count >= config.early_stopping_patience


def pack_best_model(run_dir: Path, checkpoint: Path) -> None:
    """Copy the best model into a checkpoint that is being written, by hard links where possible."""
    if (run_dir / BEST_MODEL).is_dir():
        shutil.copytree(run_dir / BEST_MODEL, checkpoint / PACKED, copy_function=_link_or_copy)


def unpack_best_model(run_dir: Path, checkpoint: Path) -> None:
    """Replace the best model by that of the checkpoint from which training resumes."""
    packed = checkpoint / PACKED
    shutil.rmtree(run_dir / BEST_MODEL, ignore_errors=True)

    def fill(folder: Path) -> None:
        shutil.copytree(packed, folder, dirs_exist_ok=True)

    if packed.is_dir():
        files.publish_folder(run_dir / BEST_MODEL, fill)


def _link_or_copy(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
