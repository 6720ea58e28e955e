"""Supervised fine-tuning with LoRA or of all weights, by TRL's SFTTrainer.

The same command on the same run directory resumes from the last complete checkpoint, with optimizer,
schedule, random state and data position. SIGTERM saves a checkpoint after the current step and exits 75.

    python -m trainers.sft --config sft.yaml --run-dir runs/first
"""

import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerState
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from trainers import run_dir as files
from trainers.configs.sft import FullTuning, LoraTuning, Precision, SftConfig
from trainers.errors import ConfigInvalid
from trainers.examples import Examples, load_examples
from trainers.load import (
    base_of,
    forward_dtype,
    load_model,
    load_tokenizer,
    parameter_counts,
    pick_device,
    pick_precision,
    template_sha256,
)
from trainers.program import Stop, StopRequested, is_first_process, run_program, stop_after_step
from trainers.report import Report
from trainers.training import RunDirCallback, wait_for_all

logger = logging.getLogger("trainers")


def train(config: SftConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Train, save `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base)
    examples = load_examples(config.dataset, tokenizer, config.max_length)
    examples.warn(report, config.max_length)
    model = _model(config, precision, report)
    with stop_after_step() as stop:
        trainer = _trainer(config, run_dir, model, tokenizer, examples, precision)
        trainer.add_callback(RunDirCallback(run_dir, report, stop, config.keep_checkpoints))
        trainable, every = parameter_counts(trainer.model)
        if is_first_process():
            logger.info("%d of %d parameters are trained, on %s.", trainable, every, examples.summary())
        _fit(trainer, run_dir, stop)
        _save(trainer, config, run_dir, tokenizer)
    return _result(config, tokenizer, trainer.state, time.monotonic() - started)


def plan(config: SftConfig) -> dict[str, Any]:
    """The resolved numbers of a run, without training."""
    device = pick_device(config.queue)
    precision = pick_precision(config.precision, device)
    tokenizer = load_tokenizer(config.base)
    examples = load_examples(config.dataset, tokenizer, config.max_length)
    model = _model(config, precision, Report(None))
    if isinstance(config.tuning, LoraTuning) and not isinstance(model, PeftModel):
        model = get_peft_model(model, _lora(config.tuning))
    trainable, every = parameter_counts(model)
    return {
        "stage": "sft",
        "rows": examples.rows,
        "examples": len(examples.examples),
        "truncated": examples.truncated,
        "dropped": examples.dropped,
        "tokens": examples.tokens,
        "loss_tokens": examples.loss_tokens,
        "steps": _total_steps(config, len(examples.examples)),
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": _accumulation(config),
        "learning_rate": config.learning_rate,
        "trainable_parameters": trainable,
        "parameters": every,
        "device": device.type,
        "precision": precision,
    }


def _model(config: SftConfig, precision: Precision, report: Report) -> PreTrainedModel | PeftModel:
    """A frozen base is kept in the forward pass's format; fp32 does not round small updates away."""
    is_lora = isinstance(config.tuning, LoraTuning)
    dtype = forward_dtype(precision) if is_lora else torch.float32
    model = load_model(config.base, dtype, is_trainable=is_lora)
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


def _lora(tuning: LoraTuning) -> LoraConfig:
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=tuning.target_modules,
        task_type="CAUSAL_LM",
    )


def _trainer(
    config: SftConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    precision: Precision,
) -> SFTTrainer:
    is_new_adapter = isinstance(config.tuning, LoraTuning) and not isinstance(model, PeftModel)
    trainer = SFTTrainer(
        model=model,
        args=_arguments(config, run_dir, precision, _total_steps(config, len(examples.examples))),
        train_dataset=Dataset.from_list(
            [{"input_ids": example.input_ids, "labels": example.labels} for example in examples.examples]
        ),
        processing_class=tokenizer,
        peft_config=_lora(config.tuning) if is_new_adapter else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: SftConfig, run_dir: Path, precision: Precision, steps: int) -> TrlConfig:
    is_cpu = pick_device(config.queue).type == "cpu"
    return TrlConfig(
        output_dir=str(run_dir / files.SCRATCH),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=_accumulation(config),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule.value,
        warmup_steps=math.ceil(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_length,
        completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=is_cpu,
        bf16=precision is Precision.bf16,
        # Recomputing activations costs a fifth of the time and saves most of a GPU's memory.
        activation_checkpointing=not is_cpu,
        dataloader_pin_memory=not is_cpu,
        logging_steps=config.log_every_steps,
        # The default replaces losses that are not finite by the mean and would hide them.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        save_strategy="steps",
        save_steps=config.save_every_steps,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )


def _fit(trainer: SFTTrainer, run_dir: Path, stop: Stop) -> None:
    if is_first_process():
        shutil.rmtree(run_dir / files.SCRATCH, ignore_errors=True)
    checkpoint = files.last_complete_checkpoint(run_dir)
    wait_for_all()
    if stop.requested:
        raise StopRequested
    try:
        if checkpoint is None:
            trainer.train()
        else:
            logger.info("Resuming from %s.", checkpoint)
            _resume(trainer, checkpoint)
    finally:
        # After a failure too: on a full disk this makes room for error.json.
        if is_first_process():
            shutil.rmtree(run_dir / files.SCRATCH, ignore_errors=True)
    if trainer.state.global_step < trainer.state.max_steps:
        raise StopRequested


def _resume(trainer: SFTTrainer, checkpoint: Path) -> None:
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if state.global_step < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        # Resumed after its last step, the Trainer would take one step too many.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state


def _save(trainer: SFTTrainer, config: SftConfig, run_dir: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = base_of(config.base)

    def fill(folder: Path) -> None:
        if isinstance(model, PeftModel):
            # "auto" asks the hub whether the base's vocabulary has changed.
            model.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").unlink()
        else:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    if is_first_process():
        files.publish_folder(run_dir / files.MODEL, fill)
    wait_for_all()


def _result(
    config: SftConfig, tokenizer: PreTrainedTokenizerBase, state: TrainerState, seconds: float
) -> dict[str, Any]:
    return {
        "stage": "sft",
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
            "seconds": round(seconds, 3),
        },
    }


def _mean_loss(state: TrainerState) -> float:
    """The mean over all steps, of earlier attempts too; the Trainer's own figure knows only this process."""
    logged = [entry for entry in state.log_history if "loss" in entry]
    starts = [0, *(entry["step"] for entry in logged)]
    total = sum(entry["loss"] * (entry["step"] - start) for entry, start in zip(logged, starts, strict=False))
    return total / state.global_step


def _total_steps(config: SftConfig, examples: int) -> int:
    return config.max_steps or max(1, math.ceil(math.ceil(examples / config.batch_size) * config.epochs))


def _accumulation(config: SftConfig) -> int:
    assert config.micro_batch_size is not None
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % (config.micro_batch_size * world_size):
        raise ConfigInvalid(
            f"batch_size {config.batch_size} is not a multiple of micro_batch_size {config.micro_batch_size} "
            f"times {world_size} devices.",
            "Change batch_size or micro_batch_size so that every device gets the same number of rows.",
        )
    return config.batch_size // (config.micro_batch_size * world_size)


if __name__ == "__main__":
    run_program(SftConfig, train, plan)
