"""What training makes: its best model on the way, the published one, and the result."""

import logging
import os
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
from trainers.modeling.load import template_sha256
from trainers.runtime import run_dir as files
from trainers.runtime.program import is_main_process
from trainers.training.callback import wait_for_all
from trainers.training.validation import BEST_MODEL, BestModelCallback, best_step, validation_losses

logger = logging.getLogger("trainers")


def add_validation_callback(
    trainer: Trainer, config: ValidatedTrainingConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Keep the best model and stop early, if there is a validation dataset."""
    if config.validation_dataset is not None:
        trainer.add_callback(
            BestModelCallback(config, run_dir, partial(_write_model, trainer, config, tokenizer))
        )


def save_model(
    trainer: Trainer, config: TrainingConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Publish `model/`: the best model that validation has found, or the one that was trained last."""
    best = best_step(validation_losses(trainer.state))
    if best not in (None, trainer.state.global_step) and (run_dir / BEST_MODEL).is_dir():
        if is_main_process():
            logger.info("Publishing the model of step %d, whose validation loss is the lowest.", best)
            shutil.rmtree(run_dir / files.MODEL, ignore_errors=True)
            (run_dir / BEST_MODEL).rename(run_dir / files.MODEL)
        wait_for_all()
    else:
        _write_model(trainer, config, tokenizer, run_dir / files.MODEL)


def training_result(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, state: TrainerState, **metrics: float | None
) -> dict[str, Any]:
    """What `result.json` says of a training stage; `metrics` are joined to those that all have."""
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
            "devices": int(os.environ.get("WORLD_SIZE", "1")),
            **_validated(state),
            **metrics,
        },
    }


def _write_model(
    trainer: Trainer, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, target: Path
) -> None:
    """Publish the model as it is now: the adapter or all weights, with the tokenizer.

    Every process takes part, since each may hold a shard of the weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = {"state_dict": _gathered(trainer, model)} if is_sharded else {}
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = get_base_model(config.base)

    def fill(folder: Path) -> None:
        if isinstance(model, PeftModel):
            # "auto" asks the hub whether the base's vocabulary has changed. A frozen reference stays behind.
            model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"], **state)
            (folder / "README.md").unlink()
        else:
            model.save_pretrained(folder, **state)
        tokenizer.save_pretrained(folder)

    if is_main_process():
        files.publish_folder(target, fill)
    wait_for_all()


def _gathered(trainer: Trainer, model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """The whole weights, put together from the shards of all processes; tied ones once, as in a file."""
    tied = set() if isinstance(model, PeftModel) else set(model.all_tied_weights_keys)
    # DeepSpeed hands what it has gathered to the first process alone, and None to the others.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight for name, weight in weights.items() if name not in tied}


def _mean_loss(state: TrainerState) -> float:
    """The mean over all steps, of earlier attempts too; the Trainer's own figure knows only this process."""
    logged = [entry for entry in state.log_history if "loss" in entry]
    starts = [0, *(entry["step"] for entry in logged)]
    total = sum(entry["loss"] * (entry["step"] - start) for entry, start in zip(logged, starts, strict=False))
    return total / state.global_step


def _validated(state: TrainerState) -> dict[str, float]:
    """The lowest validation loss and its step, if there was any validation."""
    losses = validation_losses(state)
    best = best_step(losses)
    return {} if best is None else {"best_validation_loss": losses[best], "best_step": best}
