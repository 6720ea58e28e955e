"""The training loop: from the start, or from the last complete checkpoint."""

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import distributed
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from trainers.configs.training import TrainingConfig
from trainers.modeling.fused.compilation import compiled_layers
from trainers.modeling.load import AdapterUnreadable, count_parameters
from trainers.modeling.model_files import ADAPTER_WEIGHTS
from trainers.modeling.quantization.nf4_callback import make_gap_callback
from trainers.modeling.safetensors_file import read_header
from trainers.runtime import run_dir as files
from trainers.runtime.program import StopFlag, StopRequested, is_main_process
from trainers.runtime.ranks import is_first_of_host, node_count
from trainers.training.callback import RunDirCallback, new_waiting_group, wait_for_all
from trainers.training.checkpoints.agreement import find_checkpoint
from trainers.training.validation import has_stopped_early, unpack_best_model

logger = logging.getLogger("trainers")


def run_training_loop(
    trainer: Trainer,
    config: TrainingConfig,
    callback: RunDirCallback[Any],
    run_dir: Path,
    stop: StopFlag,
    data_summary: str,
) -> None:
    """Train to the end, resuming from the last complete checkpoint.

    Raises StopRequested after SIGTERM, and WeightsUnchanged if the run changed nothing.
    """
    _keep_recomputed_layers(trainer)
    trainer.remove_callback(PrinterCallback)
    if (gap_callback := make_gap_callback(trainer, config, stop, callback.warn)) is not None:
        # Before the one that publishes the checkpoint.
        trainer.add_callback(gap_callback)
    trainer.add_callback(callback)
    # The shards of several hosts would be on several disks.
    if trainer.is_fsdp_enabled and distributed.is_initialized() and node_count() == 1:
        trainer.prepare_shards(new_waiting_group())
        callback.shard_writer = trainer.shard_writer
    if is_main_process():
        trainable, total = count_parameters(trainer.model)
        logger.info("%d of %d parameters are trained, on %s.", trainable, total, data_summary)
    if is_first_of_host():
        shutil.rmtree(run_dir / files.SCRATCH, ignore_errors=True)
    checkpoint = find_checkpoint(run_dir)
    if is_main_process() and checkpoint is not None:
        unpack_best_model(run_dir, checkpoint)
    wait_for_all()
    if stop.requested:
        raise StopRequested
    try:
        with _compilation(trainer, config, callback, run_dir):
            if checkpoint is None:
                trainer.train()
            else:
                _resume(trainer, config, callback, checkpoint)
        if callback.shard_writer is not None:
            callback.shard_writer.wait()
        wait_for_all()
    finally:
        # After a failure too: on a full disk this makes room for error.json.
        if is_first_of_host():
            shutil.rmtree(run_dir / files.SCRATCH, ignore_errors=True)
    if trainer.state.global_step < trainer.state.max_steps and not has_stopped_early(config, trainer.state):
        raise StopRequested
    callback.require_change(trainer.state)


def _compilation(
    trainer: Trainer, config: TrainingConfig, callback: RunDirCallback[Any], run_dir: Path
) -> AbstractContextManager[None]:
    """Return a block in which the layers are compiled, those of a reference model too, if the config asks."""
    if not config.compile:
        return nullcontext()
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    return compiled_layers(
        [model for model in models if model is not None], run_dir / files.SCRATCH / "compiled", callback.warn
    )


def _keep_recomputed_layers(trainer: Trainer) -> None:
    """Let a model recompute every n-th layer however often recomputation is switched on.

    TRL's trainers switch it off for a reference or a generation, and on again with the arguments of the
    Trainer as those of torch's function, which does not know `every_n_layers`.
    """
    arguments = trainer.args.activation_checkpointing_kwargs
    every = (arguments or {}).pop("every_n_layers", None)
    if every is None:
        return
    trainer.args.activation_checkpointing_kwargs = trainer.args.gradient_checkpointing_kwargs = (
        arguments or None
    )
    model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    select = model._set_gradient_checkpointing

    def select_every_nth(enable: bool = True, every_n_layers: int = 1, **options: Any) -> None:
        select(enable=enable, every_n_layers=every, **options)

    model._set_gradient_checkpointing = select_every_nth


def _resume(
    trainer: Trainer, config: TrainingConfig, callback: RunDirCallback[Any], checkpoint: Path
) -> None:
    require_same_adapter(trainer.model, checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    callback.report_resume(checkpoint, state.global_step)
    if state.global_step < trainer.args.max_steps and not has_stopped_early(config, state):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        # Resumed after its last step, the Trainer would take one step too many: only load the weights.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state


def require_same_adapter(model: Any, checkpoint: Path) -> None:
    """Raise AdapterUnreadable if no weight of a checkpoint's adapter has a name of the model's.

    The Trainer would continue with a new adapter and report nothing. A version that loaded the base in
    another class, as the text model of a multimodal one, has written other names.
    """
    weights = checkpoint / ADAPTER_WEIGHTS
    if not isinstance(model, PeftModel) or not weights.is_file():
        return
    expected = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False).keys()
    found, _ = read_header(weights)
    if expected.isdisjoint(found):
        raise AdapterUnreadable(
            f"The run cannot continue from its checkpoint {checkpoint.name}: its adapter names layers such "
            f"as {min(found, default='none')}, and the model has {min(expected)}.",
            "Another version of Tunesmith has written it. Start the training again as a new job.",
        )
