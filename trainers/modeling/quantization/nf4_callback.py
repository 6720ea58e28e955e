"""The record of a base in nf4 in each checkpoint and with the published adapter."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.modeling.quantization.nf4_gap import GapUnknown, Nf4GapRecorder
from trainers.runtime import run_dir as files
from trainers.runtime.program import StopFlag, is_main_process
from trainers.training.callback import wait_for_all


class Nf4GapCallback(TrainerCallback):  # type: ignore[misc]
    """Adds the record to a checkpoint before it is published."""

    def __init__(self, recorder: Nf4GapRecorder, stop: StopFlag) -> None:
        self._recorder, self._stop = recorder, stop

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A run that must stop has little time to save what it needs to resume.
        if is_main_process() and not self._stop.requested:
            self._recorder.record(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def make_gap_callback(
    trainer: Trainer, config: TrainingConfig, stop: StopFlag, warn: Callable[[str, str], None]
) -> Nf4GapCallback | None:
    """Return the callback of a run on a base in nf4, or None; `warn` gets a reason why there is none."""
    if not _is_quantized(config):
        return None
    try:
        return Nf4GapCallback(_make_recorder(trainer, config), stop)
    except GapUnknown as error:
        warn(
            "quantization_gap_unknown",
            f"How far the adapter on its original base is from the model as it is trained, in 4 bits, cannot "
            f"be measured: {error}. The parity check compares the adapter on the original base only. "
            "Train on one device to have it measured.",
        )
        return None


def record_published_gap(trainer: Trainer, config: TrainingConfig, run_dir: Path) -> None:
    """Write the record of the published adapter, if it can be measured."""
    if not _is_quantized(config):
        return
    with suppress(GapUnknown):
        recorder = _make_recorder(trainer, config)
        if is_main_process():
            recorder.record_published(run_dir / files.MODEL)
    wait_for_all()


def _is_quantized(config: TrainingConfig) -> bool:
    return isinstance(config.tuning, LoraTuning) and config.tuning.quantization is not None


def _make_recorder(trainer: Trainer, config: TrainingConfig) -> Nf4GapRecorder:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise GapUnknown("several devices share the weights")
    model = trainer.accelerator.unwrap_model(trainer.model)
    return Nf4GapRecorder(model, config, trainer.processing_class)
