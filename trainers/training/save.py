"""The output of training: the best model so far, the published model, and the result."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState

from trainers.configs.references import get_base_model
from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.configs.validation import ValidatedTrainingConfig
from trainers.modeling.load import pick_device, template_sha256
from trainers.modeling.model_source import open_base
from trainers.modeling.multimodal.encoders import copy_processor
from trainers.modeling.quantization.nf4_callback import record_published_gap
from trainers.runtime import run_dir as files
from trainers.runtime.program import is_main_process
from trainers.runtime.ranks import world_size
from trainers.training.callback import take_from_first, wait_for_all
from trainers.training.diagnosis.peak_memory import measure_peak
from trainers.training.validation import (
    BEST_MODEL,
    BestModelCallback,
    best_block_losses,
    best_step,
    validation_losses,
)

logger = logging.getLogger("trainers")


def add_validation_callback(
    trainer: Trainer, config: ValidatedTrainingConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Keep the best model and stop early, if the stage has a validation dataset."""
    if config.validation_dataset is not None:
        trainer.add_callback(
            BestModelCallback(config, run_dir, partial(_write_model, trainer, config, tokenizer))
        )


def save_model(
    trainer: Trainer, config: TrainingConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Publish `model/`: the model with the lowest validation loss, or the last one without validation."""
    if take_from_first(publishes_best(trainer.state, run_dir)):
        if is_main_process():
            publish_best(trainer.state, run_dir)
        wait_for_all()
    else:
        _write_model(trainer, config, tokenizer, run_dir / files.MODEL)
    record_published_gap(trainer, config, run_dir)


def publishes_best(state: TrainerState, run_dir: Path) -> bool:
    """Return whether an earlier step had the lowest validation loss, and its model was kept."""
    best = best_step(validation_losses(state))
    return best not in (None, state.global_step) and (run_dir / BEST_MODEL).is_dir()


def publish_best(state: TrainerState, run_dir: Path) -> None:
    """Make the best model the published one."""
    best = best_step(validation_losses(state))
    logger.info("Publishing the model of step %d, which has the lowest validation loss.", best)
    shutil.rmtree(run_dir / files.MODEL, ignore_errors=True)
    (run_dir / BEST_MODEL).rename(run_dir / files.MODEL)


def training_result(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, state: TrainerState, **metrics: float | None
) -> dict[str, Any]:
    """Return the content of `result.json`; `metrics` are added to those of all training stages.

    Every process must call this.
    """
    losses = validation_losses(state)
    best = best_step(losses)
    # The loss of reinforcement learning, which validates as well, does not compare models.
    has_best = best is not None and isinstance(config, ValidatedTrainingConfig)
    validation = {"best_validation_loss": min(losses.values()), "best_step": best} if has_best else {}
    return {
        "stage": config.stage,
        "model": {
            "path": files.MODEL,
            "kind": "adapter" if isinstance(config.tuning, LoraTuning) else "base",
            "base": get_base_model(config.base),
            "template_sha256": template_sha256(tokenizer),
        },
        "metrics": {
            "train_loss": _mean_loss(state),
            "steps": state.global_step,
            "tokens": state.num_input_tokens_seen,
            "devices": world_size(),
            **measure_peak(pick_device(config.queue)),
            **validation,
            **metrics,
        },
        **({"validation_block_losses": blocks} if (blocks := best_block_losses(state)) else {}),
    }


def _write_model(
    trainer: Trainer, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, target: Path
) -> None:
    """Publish the current model with its tokenizer: the adapter, or all weights.

    Every process must call this, because each may hold a shard of the weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = {"state_dict": _gather_weights(trainer, model)} if is_sharded else {}
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = get_base_model(config.base)

    def fill(folder: Path) -> None:
        if isinstance(model, PeftModel):
            # Embeddings "auto", the default, asks the hub whether the base's vocabulary was resized. Of the
            # adapters only "default" is trained; a frozen reference is not saved.
            model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"], **state)
            (folder / "README.md").unlink()
        else:
            model.save_pretrained(folder, **state)
            copy_processor(Path(open_base(get_base_model(config.base))), folder)
        tokenizer.save_pretrained(folder)

    if is_main_process():
        files.publish_folder(target, fill)
    wait_for_all()


def _gather_weights(trainer: Trainer, model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """Return the whole weights, gathered from the shards of all processes, without tied duplicates."""
    tied = set() if isinstance(model, PeftModel) else set(model.all_tied_weights_keys)
    # DeepSpeed returns the gathered weights to the first process only, and None to the others.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight for name, weight in weights.items() if name not in tied}


def _mean_loss(state: TrainerState) -> float:
    """Return the mean over all steps of all attempts; the Trainer's own mean is of this attempt only."""
    logged = [entry for entry in state.log_history if "loss" in entry]
    starts = [0, *(entry["step"] for entry in logged)]
    total = sum(entry["loss"] * (entry["step"] - start) for entry, start in zip(logged, starts, strict=False))
    return float(total / state.global_step)
