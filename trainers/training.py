"""What training stages share: the model to train, TRL's arguments, resuming, saving and the result."""

import logging
import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from trainers import run_dir as files
from trainers.best import BEST, KeepBest, best_step, stopped_early, unpack_best, validation_losses
from trainers.callback import RunDirCallback, wait_for_all
from trainers.configs.processes import parallel_arguments
from trainers.configs.training import FullTuning, LoraTuning, Precision, TrainingConfig
from trainers.configs.validation import ValidatedTrainingConfig
from trainers.errors import ConfigInvalid
from trainers.load import (
    base_of,
    forward_dtype,
    load_model,
    parameter_counts,
    pick_attention,
    pick_device,
    pick_precision,
    template_sha256,
)
from trainers.preflight.fit import estimate_fit, needs_checkpointing, this_host
from trainers.program import Stop, StopRequested, is_first_process
from trainers.quantized import quantization
from trainers.report import Report
from trainers.surroundings import expected_resuming

logger = logging.getLogger("trainers")

T = TypeVar("T", bound=Trainer)


def load_policy(config: TrainingConfig, precision: Precision, report: Report) -> PreTrainedModel | PeftModel:
    """The model to train, on the CPU; with full tuning an adapter is merged into the weights.

    A frozen base is kept in the forward pass's format; fp32 does not round small updates away.
    """
    is_lora = isinstance(config.tuning, LoraTuning)
    dtype = forward_dtype(precision) if is_lora else torch.float32
    attention = pick_attention(config.attention, pick_device(config.queue))
    model = load_model(
        config.base,
        dtype,
        is_trainable=is_lora,
        attention=attention,
        quantization=quantization(config, dtype),
    )
    if not isinstance(model, PeftModel):
        return model
    if isinstance(config.tuning, FullTuning):
        # PEFT froze the base when it put the adapter on.
        return model.merge_and_unload().requires_grad_(True)
    adapter = model.peft_config["default"]
    if (adapter.r, adapter.lora_alpha) != (config.tuning.rank, config.tuning.alpha):
        report.warning(
            "adapter_settings_kept",
            f"Training goes on with the adapter's rank {adapter.r} and alpha {adapter.lora_alpha}, "
            f"not with rank {config.tuning.rank} and alpha {config.tuning.alpha} of the config.",
        )
    return model


def new_adapter(config: TrainingConfig, model: PreTrainedModel | PeftModel) -> LoraConfig | None:
    """The adapter that is still to be put on the model; None where there is one, or none is asked for."""
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning) or isinstance(model, PeftModel):
        return None
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_dora=tuning.dora,
        use_rslora=tuning.rslora,
        target_modules=tuning.target_modules,
        task_type="CAUSAL_LM",
    )


def validation_arguments(config: ValidatedTrainingConfig) -> dict[str, Any]:
    """The arguments of validating while training; none without a validation dataset."""
    if config.validation_dataset is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": config.validate_every_steps or config.save_every_steps,
        "per_device_eval_batch_size": config.micro_batch_size,
    }


def watch_validation(
    trainer: Trainer, config: ValidatedTrainingConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Keep the best model and stop early, if there is a validation dataset."""
    if config.validation_dataset is not None:
        write = partial(_write_model_to, trainer, config, tokenizer)
        trainer.add_callback(KeepBest(config, run_dir, write))


def _write_model_to(
    trainer: Trainer, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, target: Path
) -> None:
    write_model(trainer, config, target, tokenizer)


def keep_adapter_precise(trainer: T) -> T:
    """TRL keeps the adapter of a quantised base in bf16, whose 8 bits lose small updates: make it fp32."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def training_arguments(
    config: TrainingConfig, run_dir: Path, precision: Precision, steps: int, longest_tokens: int
) -> dict[str, Any]:
    """The arguments that mean the same to every trainer of TRL."""
    is_cpu = pick_device(config.queue).type == "cpu"
    return {
        "output_dir": str(run_dir / files.SCRATCH),
        "max_steps": steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation(config),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule.value,
        "warmup_steps": math.ceil(config.warmup_ratio * steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": is_cpu,
        "bf16": precision is Precision.bf16,
        "activation_checkpointing": wants_checkpointing(config, longest_tokens),
        "dataloader_pin_memory": not is_cpu,
        "logging_steps": config.log_every_steps,
        # The default replaces losses that are not finite by the mean and would hide them.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "steps",
        "save_steps": config.save_every_steps,
        "report_to": "none",
        "disable_tqdm": True,
    } | parallel_arguments(config)


def wants_checkpointing(config: TrainingConfig, longest_tokens: int) -> bool:
    """Whether activations are computed again: a third more work, so only where memory asks for it."""
    if config.activation_checkpointing is not None:
        return config.activation_checkpointing
    return needs_checkpointing(config, this_host(), longest_tokens)


def fit(
    trainer: Trainer,
    config: TrainingConfig,
    callback: RunDirCallback,
    run_dir: Path,
    stop: Stop,
    summary: str,
) -> None:
    """Train from the last complete checkpoint on, or from the start; raises StopRequested after SIGTERM."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    if is_first_process():
        trainable, every = parameter_counts(trainer.model)
        logger.info("%d of %d parameters are trained, on %s.", trainable, every, summary)
        shutil.rmtree(run_dir / files.SCRATCH, ignore_errors=True)
    checkpoint = files.last_complete_checkpoint(run_dir)
    if is_first_process() and checkpoint is not None:
        unpack_best(run_dir, checkpoint)
    wait_for_all()
    if stop.requested:
        raise StopRequested
    try:
        if checkpoint is None:
            trainer.train()
        else:
            _resume(trainer, config, callback, checkpoint)
    finally:
        # After a failure too: on a full disk this makes room for error.json.
        if is_first_process():
            shutil.rmtree(run_dir / files.SCRATCH, ignore_errors=True)
    if trainer.state.global_step < trainer.state.max_steps and not stopped_early(config, trainer.state):
        raise StopRequested


def save_model(
    trainer: Trainer, config: TrainingConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Publish `model/`: the best model that validation has found, or the one that was trained last."""
    best = best_step(validation_losses(trainer.state))
    if best not in (None, trainer.state.global_step) and (run_dir / BEST).is_dir():
        if is_first_process():
            logger.info("Publishing the model of step %d, whose validation loss is the lowest.", best)
            shutil.rmtree(run_dir / files.MODEL, ignore_errors=True)
            (run_dir / BEST).rename(run_dir / files.MODEL)
        wait_for_all()
    else:
        write_model(trainer, config, run_dir / files.MODEL, tokenizer)


def write_model(
    trainer: Trainer, config: TrainingConfig, target: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Publish the model as it is now: the adapter or all weights, with the tokenizer.

    Every process takes part, since each may hold a shard of the weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = {"state_dict": _gathered(trainer, model)} if is_sharded else {}
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = base_of(config.base)

    def fill(folder: Path) -> None:
        if isinstance(model, PeftModel):
            # "auto" asks the hub whether the base's vocabulary has changed. A frozen reference stays behind.
            model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"], **state)
            (folder / "README.md").unlink()
        else:
            model.save_pretrained(folder, **state)
        tokenizer.save_pretrained(folder)

    if is_first_process():
        files.publish_folder(target, fill)
    wait_for_all()


def _gathered(trainer: Trainer, model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """The whole weights, put together from the shards of all processes; tied ones once, as in a file."""
    tied = set() if isinstance(model, PeftModel) else set(model.all_tied_weights_keys)
    # DeepSpeed hands what it has gathered to the first process alone, and None to the others.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight for name, weight in weights.items() if name not in tied}


def training_result(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, state: TrainerState, **metrics: float | None
) -> dict[str, Any]:
    """What `result.json` says of a training stage; `metrics` are joined to those that all have."""
    return {
        "stage": config.stage,
        "model": {
            "path": files.MODEL,
            "kind": "adapter" if isinstance(config.tuning, LoraTuning) else "base",
            "base": base_of(config.base),
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


def _validated(state: TrainerState) -> dict[str, float]:
    """The lowest validation loss and its step, if there was any validation."""
    losses = validation_losses(state)
    best = best_step(losses)
    return {} if best is None else {"best_validation_loss": losses[best], "best_step": best}


def planned_numbers(config: TrainingConfig, steps: int, longest_tokens: int) -> dict[str, Any]:
    """What `--dry-run` tells of every training stage."""
    device = pick_device(config.queue)
    precision = pick_precision(config.precision, device)
    model = load_policy(config, precision, Report(None))
    adapter = new_adapter(config, model)
    trainable, every = parameter_counts(model if adapter is None else get_peft_model(model, adapter))
    return {
        "steps": steps,
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation(config),
        "learning_rate": config.learning_rate,
        "trainable_parameters": trainable,
        "parameters": every,
        "device": device.type,
        "precision": precision,
        "attention": pick_attention(config.attention, device),
        "activation_checkpointing": wants_checkpointing(config, longest_tokens),
        "fit": estimate_fit(config, [], longest_tokens),
        "resuming": expected_resuming(config).model_dump(mode="json"),
    }


def total_steps(config: TrainingConfig, rows: int, rows_per_step: int) -> int:
    """Optimizer steps of a run."""
    return config.max_steps or max(1, math.ceil(math.ceil(rows / rows_per_step) * config.epochs))


def accumulation(config: TrainingConfig) -> int:
    """Micro-batches per device and step; raises ConfigInvalid if the devices cannot share a batch evenly."""
    assert config.micro_batch_size is not None
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != config.devices:
        raise ConfigInvalid(
            f"devices is {config.devices}, but {world_size} processes were started.",
            "Start it with `python -m torch.distributed.run --nproc_per_node "
            f"{config.devices} -m trainers.{config.stage} …`, or change devices.",
        )
    if config.batch_size % (config.micro_batch_size * world_size):
        raise ConfigInvalid(
            f"batch_size {config.batch_size} is not a multiple of micro_batch_size {config.micro_batch_size} "
            f"times {world_size} devices.",
            "Change batch_size or micro_batch_size so that every device gets the same number of rows.",
        )
    return config.batch_size // (config.micro_batch_size * world_size)


def _resume(trainer: Trainer, config: TrainingConfig, callback: RunDirCallback, checkpoint: Path) -> None:
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    callback.tell_resumed(checkpoint, state.global_step)
    if state.global_step < trainer.args.max_steps and not stopped_early(config, state):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        # Resumed after its last step, the Trainer would take one step too many.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state


def _mean_loss(state: TrainerState) -> float:
    """The mean over all steps, of earlier attempts too; the Trainer's own figure knows only this process."""
    logged = [entry for entry in state.log_history if "loss" in entry]
    starts = [0, *(entry["step"] for entry in logged)]
    total = sum(entry["loss"] * (entry["step"] - start) for entry, start in zip(logged, starts, strict=False))
    return total / state.global_step
