"""A training stage with MLX: from its rows and its loss to the published model."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import maybe_set_recommended_wired_limit
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, TrainerState

from trainers.configs.references import get_base_model
from trainers.configs.training import LearningRateSchedule, LoraTuning
from trainers.configs.validation import ValidatedTrainingConfig
from trainers.mlx.dropout import recomputed_activations
from trainers.mlx.network import count_network_parameters, load_trained_network, uses_gpu
from trainers.mlx.save import write_dequantized_base, write_model
from trainers.mlx.training.batches import MakeBatch, iterate_steps, split_rows
from trainers.mlx.training.loop import BatchLoss, Loss, mean_losses, train
from trainers.mlx.training.optimizer import DecayedAdamW
from trainers.mlx.training.quantization_gap import AffineGapRecorder
from trainers.mlx.training.recorder import RunRecorder
from trainers.preflight.memory.estimate import choose_recomputation
from trainers.preflight.memory.host import local_host
from trainers.rendering.cache.mapped import Int32s
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopRequested, stop_after_step
from trainers.training.arguments import check_plan, total_steps
from trainers.training.save import publish_best, publishes_best
from trainers.training.schedule import count_warmup_steps, learning_rate_share

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class TrainedNetwork:
    """The network that is trained, with PEFT's config of its adapter; None with full tuning."""

    network: nn.Module
    adapter: LoraConfig | None


class RowSet(Protocol):
    """The rendered rows of a dataset."""

    @property
    def count(self) -> int:
        """The number of rows that are trained."""

    @property
    def lengths(self) -> Int32s:
        """The tokens of each of them."""


@dataclass(frozen=True)
class StageRows:
    """The rows of a stage, by the number of their tokens, and how micro-batches are made of them."""

    lengths: Int32s
    make_batch: MakeBatch


def load_stage_network(
    config: ValidatedTrainingConfig, events: EventWriter, rows: RowSet, validation: RowSet | None
) -> TrainedNetwork:
    """Check the plan and the lengths of all rows, then load the network; raises as both."""
    check_plan(config, total_steps(config, rows.count, config.batch_size))
    longest = max(int(part.lengths.max()) for part in (rows, validation) if part is not None)
    return TrainedNetwork(*load_trained_network(config, events, longest))


def train_stage(
    config: ValidatedTrainingConfig,
    run_dir: Path,
    events: EventWriter,
    tokenizer: PreTrainedTokenizerBase,
    model: TrainedNetwork,
    rows: StageRows,
    validation: StageRows | None,
    loss: Loss,
    summary: str,
    on_log: Callable[[TrainerState], None] | None = None,
) -> TrainerState:
    """Train to the end, resuming from the last complete checkpoint, and publish `model/`.

    `on_log` is called after each metric event, of which the first is then that of step 1.

    Raises StopRequested after SIGTERM, LossNotFinite, and WeightsUnchanged if the run changed nothing.
    """
    network = model.network
    trainable, total = count_network_parameters(network)
    logger.info("%d of %d parameters are trained, on %s.", trainable, total, summary)
    steps = total_steps(config, len(rows.lengths), config.batch_size)
    optimizer = DecayedAdamW(config.weight_decay)
    optimizer.init(network.trainable_parameters())
    write = partial(write_model, network, model.adapter, config, tokenizer)
    gap = None
    if isinstance(config.tuning, LoraTuning) and config.tuning.quantization is not None:
        gap = AffineGapRecorder(network, config, tokenizer)
    with stop_after_step() as stop:
        recorder = RunRecorder(
            config,
            run_dir,
            events,
            stop,
            network,
            optimizer,
            TrainerState(max_steps=steps),
            write,
            None if validation is None else partial(_validate, config, network, validation, loss),
            on_log,
            None if gap is None else gap.record_checkpoint,
        )
        recorder.start()
        if stop.requested:
            raise StopRequested
        if not recorder.is_finished:
            _train(config, recorder, rows, loss, steps)
        if not recorder.is_finished:
            raise StopRequested
        recorder.require_change()
        if publishes_best(recorder.state, run_dir):
            publish_best(recorder.state, run_dir)
        else:
            write(run_dir / files.MODEL)
        if gap is not None:
            base = get_base_model(config.base)
            if config.publishes_base:
                write_dequantized_base(network, config, tokenizer, run_dir / files.DEQUANTIZED_BASE)
                base = str(run_dir / files.DEQUANTIZED_BASE)
            gap.record_published(run_dir / files.MODEL, base)
    return recorder.state


def uses_compilation() -> bool:
    """Return whether steps are compiled: on a CPU, that takes longer than it saves."""
    return uses_gpu()


def recomputes_activations(config: ValidatedTrainingConfig, longest_tokens: int) -> bool:
    """Return whether activations are recomputed: as configured, or where memory requires it."""
    if config.activation_checkpointing != "auto":
        return config.activation_checkpointing
    return choose_recomputation(config, local_host(config), longest_tokens) is not None


def _train(
    config: ValidatedTrainingConfig, recorder: RunRecorder, rows: StageRows, loss: Loss, steps: int
) -> None:
    is_compiled = uses_compilation()
    if not is_compiled:
        mx.disable_compile()
    maybe_set_recommended_wired_limit()
    recomputes = recomputes_activations(config, int(rows.lengths.max()))
    files.write_json(recorder.run_dir / files.RECOMPUTATION, {"every_n_layers": 1 if recomputes else None})
    warmup = count_warmup_steps(config, steps)
    peak, schedule = config.learning_rate, LearningRateSchedule(config.schedule)
    assert peak is not None

    def learning_rate(step: int) -> float:
        return peak * learning_rate_share(step - 1, schedule, warmup, steps)

    with recomputed_activations(recorder.network) if recomputes else contextlib.nullcontext():
        train(
            recorder.network,
            recorder.optimizer,
            iterate_steps(config, rows.lengths, rows.make_batch, recorder.state.global_step, steps),
            loss,
            learning_rate=learning_rate,
            max_grad_norm=config.max_grad_norm,
            on_step=recorder.on_step,
            is_compiled=is_compiled,
        )


def _validate(
    config: ValidatedTrainingConfig, network: nn.Module, rows: StageRows, loss: Loss
) -> list[BatchLoss]:
    assert config.micro_batch_size is not None
    every = range(len(rows.lengths))
    parts = split_rows(every, config.micro_batch_size)
    return mean_losses(network, (rows.make_batch(part, every) for part in parts), loss)
