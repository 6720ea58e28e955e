"""The Trainer callback of all training stages: events, checkpoints, SIGTERM, and a check of the loss."""

import logging
import math
import shutil
import time
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.configs.training import TrainingConfig
from trainers.runtime import run_dir as files
from trainers.runtime.environment import actual_resume_guarantee, save_environment
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag, is_main_process
from trainers.runtime.ranks import is_first_of_host, node_count, node_rank, world_size
from trainers.training.checkpoints.interval import CheckpointTimer
from trainers.training.checkpoints.shards import ShardWriter
from trainers.training.diagnosis.loss_trend import LossTrend, describe_trend, find_loss_problem, is_due
from trainers.training.diagnosis.non_finite import diagnose_non_finite, find_damaged_weight
from trainers.training.diagnosis.peak_memory import measure_peak
from trainers.training.diagnosis.weight_changes import WeightChangeDetector, describe_no_change
from trainers.training.validation import EVAL_LOSS, pack_best_model

TConfig = TypeVar("TConfig", bound=TrainingConfig)
T = TypeVar("T")

# Rank 0 checks the rows, hashes and writes a checkpoint, and gathers a model, while the others wait.
WAIT_TIMEOUT_SECONDS = 4 * 3600

logger = logging.getLogger("trainers")


class RunDirCallback(TrainerCallback, Generic[TConfig]):
    """Writes the Trainer's progress, metrics and checkpoints into the run directory."""

    # Whether a falling loss means that the model learns; that of reinforcement learning stays near 0.
    loss_falls = True

    def __init__(self, config: TConfig, run_dir: Path, events: EventWriter, stop: StopFlag) -> None:
        self._config = config
        self._run_dir = run_dir
        self._events = events
        self._stop = stop
        self._changes = WeightChangeDetector()
        self._save_started_at = time.monotonic()
        self.shard_writer: ShardWriter | None = None
        """Writes the weights and the optimizer's state of checkpoints, where they are sharded."""
        self._has_warned_of_loss = False

    def warn(self, code: str, message: str) -> None:
        """Write a warning event and log it."""
        self._events.write_warning(code, message)
        if is_main_process():
            logger.warning("%s: %s", code, message)

    def report_resume(self, checkpoint: Path, step: int) -> None:
        """Log from which step the run resumes, and whether exactly."""
        self._changes.load(checkpoint)
        guarantee = actual_resume_guarantee(self._config, checkpoint)
        if is_main_process():
            reasons = " ".join(guarantee.reasons)
            logger.info("Resuming after step %d, %s. %s", step, guarantee.exactness, reasons)
        self._events.write_resumed(step, guarantee.exactness, guarantee.reasons)

    def require_change(self, state: TrainerState) -> None:
        """Raise WeightsUnchanged if no step of any attempt changed the model."""
        if not self._changes.found:
            norms = [entry["grad_norm"] for entry in state.log_history if "grad_norm" in entry]
            raise describe_no_change(self._config, state.global_step, norms)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._changes.start(kwargs["model"])
        self._timer = CheckpointTimer(self._config, state.max_steps)
        # A resumed run does not repeat its warning.
        losses = _logged_losses(state)
        due = (end for end in range(1, len(losses) + 1) if is_due(end))
        self._has_warned_of_loss = any(self._find_loss_problem(losses[:end]) for end in due)
        self._events.write_progress(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._changes.check(kwargs["model"])
        if self.shard_writer is not None:
            self.shard_writer.check()
        # The clocks of the processes differ, too.
        must_stop, is_due = _any_process([self._stop.requested, self._timer.is_due], args.device)
        control.should_training_stop |= must_stop
        control.should_save |= must_stop or is_due
        # A checkpoint does not contain the sum of losses since the last log, so log before each checkpoint.
        if control.should_save or control.should_training_stop:
            control.should_log = True
        self._save_started_at = time.monotonic()
        self._events.write_progress(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # A reward that scored nothing since the last log has no mean.
        values = {name: float(value) for name, value in (logs or {}).items() if value is not None}
        if EVAL_LOSS in values:
            validation = {name.replace("eval_", "validation_", 1): value for name, value in values.items()}
            self._events.write_metrics(state.global_step, state.max_steps, validation)
        # The Trainer's last log sums up the whole run; `result.json` contains that.
        if "loss" not in values:
            return
        values["tokens"] = float(state.num_input_tokens_seen)
        # On a CPU the libraries are most of it, and only the result has it.
        if args.device.type == "cuda":
            values |= measure_peak(args.device)
        self._events.write_metrics(state.global_step, state.max_steps, values)
        if is_main_process():
            logger.info("step %d of %d, loss %.4f", state.global_step, state.max_steps, values["loss"])
        # In fp16, gradients that overflow are expected: the step is skipped and the loss scaled less.
        required = ("loss",) if args.fp16 else ("loss", "grad_norm")
        if not all(math.isfinite(values.get(name, 0.0)) for name in required):
            raise diagnose_non_finite(self._config, find_damaged_weight(kwargs["model"]), state, values)
        losses = _logged_losses(state)
        if not self._has_warned_of_loss and is_due(len(losses)):
            self._warn_of_loss(state.global_step, losses)

    def _warn_of_loss(self, step: int, losses: list[float]) -> None:
        trend = self._find_loss_problem(losses)
        if trend is None:
            return
        self._has_warned_of_loss = True
        message = describe_trend(self._config, step, trend)
        self.warn("loss_unstable", message)

    def _find_loss_problem(self, losses: list[float]) -> LossTrend | None:
        if not self.loss_falls:
            return None
        return find_loss_problem(losses, self._config.batch_size * self._config.log_every_steps)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A validation comes before the checkpoint of the same step.
        self._save_started_at = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Every process writes its own random state into the folder, so wait for all before publishing it.
        wait_for_all()
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _gather_from_hosts(written)
        if is_main_process():
            pack_best_model(self._run_dir, written)
            save_environment(self._config, written)
            self._changes.save(written)
        publish = partial(self._publish, state.global_step, written, self._save_started_at)
        if self.shard_writer is None:
            publish()
        else:
            self.shard_writer.publish_when_written(publish)
            if control.should_training_stop:
                self.shard_writer.wait()
        wait_for_all()
        self._timer.restart()

    def _publish(self, step: int, written: Path, started_at: float) -> None:
        if is_main_process():
            files.publish_checkpoint(self._run_dir, step, written, started_at)
            files.prune_checkpoints(self._run_dir, self._config.keep_checkpoints)


def _logged_losses(state: TrainerState) -> list[float]:
    return [entry["loss"] for entry in state.log_history if "loss" in entry]


def _gather_from_hosts(folder: Path) -> None:
    """Move what the processes of other hosts have written for a checkpoint into the first host's folder.

    Those are random states of some kilobytes: without them, the other hosts' processes would draw others
    after a resume.
    """
    if node_count() == 1:
        return
    is_sender = node_rank() > 0 and is_first_of_host()
    own = {path.name: path.read_bytes() for path in folder.glob("*")} if is_sender else {}
    gathered: list[Any] | None = [None] * world_size() if is_main_process() else None
    distributed.gather_object(own, gathered, dst=0, group=waiting_group())
    for name, content in (file for written in gathered or () for file in written.items()):
        (folder / name).write_bytes(content)
    if is_sender:
        shutil.rmtree(folder, ignore_errors=True)


def take_from_first(value: T) -> T:
    """Return the value that the first process passes: others may see another run directory."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, group=waiting_group())
    return values[0]


def wait_for_all() -> None:
    """Wait until every process of the run has called this."""
    if distributed.is_initialized():
        distributed.barrier(waiting_group())


@cache
def waiting_group() -> Any:
    """Return the group of `wait_for_all`, which all processes must first ask for together."""
    return new_waiting_group()


def new_waiting_group() -> Any:
    """Return a group of all processes for waits while the first one works alone, such as on a checkpoint.

    It has a time limit of its own, longer than that of training's collective operations. All processes must
    call this together.
    """
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_TIMEOUT_SECONDS))


def _any_process(flags: list[bool], device: torch.device) -> list[bool]:
    """Return which flags are set in any process, so that all processes stop or save after the same step."""
    if not distributed.is_initialized():
        return flags
    any_flags = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(any_flags, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in any_flags.tolist()]
