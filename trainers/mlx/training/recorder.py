"""Events, validation and checkpoints of a training run with MLX, as the torch trainers have them.

All decisions depend on the log in `TrainerState`, which each checkpoint contains.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from trainers.configs.validation import ValidatedTrainingConfig
from trainers.mlx.training.environment import resume_guarantee, save_environment
from trainers.mlx.training.loop import BatchLoss, StepResult
from trainers.mlx.training.state import load_state, save_state
from trainers.mlx.training.weight_changes import NetworkChangeDetector
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag
from trainers.training.checkpoints.interval import (
    CheckpointTimer,
    steps_between_checkpoints,
    steps_between_validations,
)
from trainers.training.diagnosis.loss_trend import describe_trend, find_loss_problem, is_due
from trainers.training.diagnosis.non_finite import diagnose_non_finite
from trainers.training.diagnosis.weight_changes import describe_no_change
from trainers.training.validation import (
    BEST_MODEL,
    BLOCK_LOSSES,
    EVAL_LOSS,
    best_step,
    has_stopped_early,
    mean_blocks,
    pack_best_model,
    unpack_best_model,
    validation_losses,
)

logger = logging.getLogger("trainers")


@dataclass
class RunRecorder:
    """Writes the progress, metrics and checkpoints of a run into its directory."""

    config: ValidatedTrainingConfig
    run_dir: Path
    events: EventWriter
    stop: StopFlag
    network: nn.Module
    optimizer: Optimizer
    state: TrainerState
    write_model: Callable[[Path], None]
    """Publishes the current model as a folder."""
    validate: Callable[[], list[BatchLoss]] | None = None
    """Returns the losses of the validation batches."""
    on_log: Callable[[TrainerState], None] | None = None
    """Called after each metric event, of which the first is then that of step 1."""
    record_gap: Callable[[Path], None] | None = None
    """Records in a folder with the adapter how far its base in 4 bits is from the published one."""
    _changes: NetworkChangeDetector = field(default_factory=NetworkChangeDetector)
    _since_log: list[StepResult] = field(default_factory=list)
    _has_warned_of_loss: bool = False

    def start(self) -> None:
        """Resume from the last complete checkpoint, if there is one, and record the start of the attempt."""
        shutil.rmtree(self.run_dir / files.SCRATCH, ignore_errors=True)
        checkpoint = files.last_complete_checkpoint(self.run_dir)
        if checkpoint is not None:
            self._resume(checkpoint)
        self._changes.start(self.network)
        self._timer = CheckpointTimer(self.config, self.state.max_steps)
        losses = self._losses()
        # A resumed run does not repeat its warning.
        due = (end for end in range(1, len(losses) + 1) if is_due(end))
        self._has_warned_of_loss = any(self._find_problem(losses[:end]) is not None for end in due)
        self.events.write_progress(self.state.global_step, self.state.max_steps)

    @property
    def is_finished(self) -> bool:
        """Whether the run has taken its last step, or has stopped early."""
        return self.state.global_step >= self.state.max_steps or has_stopped_early(self.config, self.state)

    def on_step(self, result: StepResult) -> bool:
        """Record a step; return whether training continues."""
        state, config = self.state, self.config
        state.global_step, state.epoch = result.step, result.epoch
        state.num_input_tokens_seen += result.tokens
        self._since_log.append(result)
        self._changes.check(self.network)
        between = steps_between_checkpoints(config, state.max_steps)
        is_last = self.stop.requested or self.is_finished
        is_saved = is_last or self._timer.is_due or (between is not None and result.step % between == 0)
        # A checkpoint does not contain the losses since the last log.
        is_first = self.on_log is not None and result.step == 1
        if is_saved or is_first or result.step % config.log_every_steps == 0:
            self._log()
        if (
            self.validate is not None
            and result.step % steps_between_validations(config, state.max_steps) == 0
        ):
            self._validate(self.validate)
            is_last = is_last or self.is_finished
            is_saved = is_saved or is_last
        if is_saved:
            self._save()
        self.events.write_progress(state.global_step, state.max_steps)
        return not is_last

    def require_change(self) -> None:
        """Raise WeightsUnchanged if no step of any attempt changed the model."""
        if not self._changes.found:
            norms = [entry["grad_norm"] for entry in self.state.log_history if "grad_norm" in entry]
            raise describe_no_change(self.config, self.state.global_step, norms)

    def _resume(self, checkpoint: Path) -> None:
        unpack_best_model(self.run_dir, checkpoint)
        saved = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        vars(self.state).update(vars(saved) | {"max_steps": self.state.max_steps})
        load_state(checkpoint, self.network, self.optimizer)
        self._changes.load(checkpoint)
        guarantee = resume_guarantee(self.config, checkpoint)
        step = self.state.global_step
        logger.info("Resuming after step %d, %s. %s", step, guarantee.exactness, " ".join(guarantee.reasons))
        self.events.write_resumed(step, guarantee.exactness, guarantee.reasons)

    def _log(self) -> None:
        results, self._since_log = self._since_log, []
        last = results[-1]
        values = {
            "loss": _mean([result.loss for result in results]),
            **{name: _mean([result.values[name] for result in results]) for name in last.values},
            "grad_norm": last.grad_norm,
            "learning_rate": last.learning_rate,
            "epoch": last.epoch,
        }
        self.state.log_history.append({**values, "step": last.step})
        values["tokens"] = float(self.state.num_input_tokens_seen)
        self.events.write_metrics(last.step, self.state.max_steps, values)
        logger.info("step %d of %d, loss %.4f", last.step, self.state.max_steps, values["loss"])
        if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
            raise diagnose_non_finite(self.config, _find_damaged_weight(self.network), self.state, values)
        losses = self._losses()
        if not self._has_warned_of_loss and is_due(len(losses)):
            self._warn_of_loss(losses)
        if self.on_log is not None:
            self.on_log(self.state)

    def _warn_of_loss(self, losses: list[float]) -> None:
        trend = self._find_problem(losses)
        if trend is not None:
            self._has_warned_of_loss = True
            message = describe_trend(self.config, self.state.global_step, trend)
            self.events.write_warning("loss_unstable", message)
            logger.warning("loss_unstable: %s", message)

    def _find_problem(self, losses: list[float]) -> Any:
        return find_loss_problem(losses, self.config.batch_size * self.config.log_every_steps)

    def _losses(self) -> list[float]:
        return [entry["loss"] for entry in self.state.log_history if "loss" in entry]

    def _validate(self, validate: Callable[[], list[BatchLoss]]) -> None:
        batches = validate()
        # The mean over rows of the mean loss of their batch, as transformers computes it.
        rows = [batch.rows for batch in batches]
        loss = _weighted_mean([batch.loss for batch in batches], rows)
        values = {
            name: _weighted_mean([batch.values[name] for batch in batches], rows)
            for name in batches[0].values
        }
        step, history = self.state.global_step, self.state.log_history
        evaluated = {f"eval_{name}": value for name, value in values.items()}
        history.append({EVAL_LOSS: loss, **evaluated, "epoch": self.state.epoch, "step": step})
        validation = {f"validation_{name}": value for name, value in values.items()}
        metrics = {"validation_loss": loss, **validation, "epoch": float(self.state.epoch or 0)}
        self.events.write_metrics(step, self.state.max_steps, metrics)
        if best_step(validation_losses(self.state)) == step:
            for entry in history:
                entry.pop(BLOCK_LOSSES, None)
            history[-1][BLOCK_LOSSES] = mean_blocks([torch.tensor(batch.loss) for batch in batches])
            if self.config.keep_best:
                self.write_model(self.run_dir / BEST_MODEL)
        if has_stopped_early(self.config, self.state):
            patience = self.config.early_stopping_patience
            logger.info("Stopping early: the last %d validations did not improve the loss.", patience)

    def _save(self) -> None:
        started_at = time.monotonic()
        folder = self.run_dir / files.SCRATCH / f"checkpoint-{self.state.global_step}"
        self.write_model(folder)
        save_state(folder, self.optimizer)
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        pack_best_model(self.run_dir, folder)
        save_environment(self.config, folder)
        self._changes.save(folder)
        # A run that must stop has little time to save what it needs to resume.
        if self.record_gap is not None and not self.stop.requested:
            self.record_gap(folder)
        files.publish_checkpoint(self.run_dir, self.state.global_step, folder, started_at)
        files.prune_checkpoints(self.run_dir, self.config.keep_checkpoints)
        self._timer.restart()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _weighted_mean(values: list[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _find_damaged_weight(network: nn.Module) -> str | None:
    trained = dict(tree_flatten(network.trainable_parameters()))
    for name, weight in tree_flatten(network.parameters()):
        is_float = mx.issubdtype(weight.dtype, mx.floating)
        if name not in trained and is_float and not mx.isfinite(weight).all().item():
            return str(name)
    return None
