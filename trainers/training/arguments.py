"""The arguments of TRL's trainers, and the plan of a training stage."""

import math
from pathlib import Path
from typing import Any

from transformers.utils import is_bitsandbytes_available

from trainers.configs.references import get_base_model
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.training import Optimizer, Precision, TrainingConfig
from trainers.configs.validation import ValidatedTrainingConfig
from trainers.modeling.attention.choice import pick_attention
from trainers.modeling.load import count_parameters, load_config, pick_device, pick_precision
from trainers.preflight.memory.estimate import choose_recomputation, estimate_memory
from trainers.preflight.memory.host import agreed_host
from trainers.runtime import run_dir as files
from trainers.runtime.environment import expected_resume_guarantee
from trainers.runtime.errors import ConfigInvalid, DeviceUnavailable
from trainers.runtime.launch_command import parallel_arguments
from trainers.runtime.program import is_main_process
from trainers.runtime.ranks import world_size
from trainers.training.checkpoints.interval import steps_between_checkpoints, steps_between_validations
from trainers.training.model_proof import prove_model
from trainers.training.policy import build_empty_policy, check_speed_settings
from trainers.training.schedule import check_learning_rates, count_warmup_steps

# A rank that has died is noticed at once (`trainers.runtime.ranks`); this bounds the wait for one that is
# alive and stuck. It must exceed the time in which rank 0 alone writes a checkpoint.
COLLECTIVE_TIMEOUT_SECONDS = 1200


def training_arguments(
    config: TrainingConfig, run_dir: Path, precision: Precision, steps: int, longest_tokens: int
) -> dict[str, Any]:
    """Return the arguments that all trainers of TRL share."""
    _check_processes(config)
    _check_optimizer(config)
    check_plan(config, steps)
    is_cpu = pick_device(config.queue).type == "cpu"
    every = recomputed_every(config, longest_tokens)
    if is_main_process():
        files.write_json(
            run_dir / files.RECOMPUTATION, {"every_n_layers": every, "longest_tokens": longest_tokens}
        )
    return {
        "output_dir": str(run_dir / files.SCRATCH),
        "max_steps": steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": _accumulation_steps(config),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule.value,
        "warmup_steps": count_warmup_steps(config, steps),
        "weight_decay": config.weight_decay,
        **({} if config.optimizer is Optimizer.adamw else {"optim": config.optimizer.value}),
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": is_cpu,
        "bf16": precision is Precision.bf16,
        # accelerate scales the loss, and skips a step whose gradients overflow.
        "fp16": precision is Precision.fp16,
        "activation_checkpointing": every is not None,
        "activation_checkpointing_kwargs": {"every_n_layers": every} if every not in (None, 1) else None,
        "dataloader_pin_memory": not is_cpu,
        "logging_steps": config.log_every_steps,
        # The default replaces losses that are not finite by the mean, which would hide them.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "steps",
        # The callback saves by time, and the Trainer after the last step.
        "save_steps": steps_between_checkpoints(config, steps) or steps,
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_timeout": COLLECTIVE_TIMEOUT_SECONDS,
    } | parallel_arguments(config)


def validation_arguments(config: ValidatedTrainingConfig | GrpoConfig, steps: int) -> dict[str, Any]:
    """Return the arguments of validation during training; none without a validation dataset."""
    if config.validation_dataset is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": steps_between_validations(config, steps),
        "per_device_eval_batch_size": config.micro_batch_size,
    }


def check_plan(config: TrainingConfig, steps: int) -> None:
    """Raise ConfigInvalid for a sweep, which is several runs, or if no step has a learning rate."""
    if isinstance(config, ValidatedTrainingConfig) and config.sweep is not None:
        raise ConfigInvalid("A program trains one run of a sweep.", "Submit the sweep as a job.")
    check_learning_rates(config, steps)


def plan_training(config: TrainingConfig, steps: int, longest_tokens: int) -> dict[str, Any]:
    """Return the part of `--dry-run` that all training stages share."""
    check_learning_rates(config, steps)
    device = pick_device(config.queue)
    check_speed_settings(config)
    prove_model(config)
    precision = pick_precision(config.precision, device)
    trainable, total = count_parameters(build_empty_policy(config))
    return {
        "steps": steps,
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": _accumulation_steps(config),
        "learning_rate": config.learning_rate,
        "trainable_parameters": trainable,
        "parameters": total,
        "device": device.type,
        "precision": precision,
        "attention": pick_attention(
            config.attention, device, load_config(get_base_model(config.base)), config.precision
        ),
        "recomputed_every_n_layers": recomputed_every(config, longest_tokens),
        "memory": estimate_memory(config, [], longest_tokens),
        "resume_guarantee": expected_resume_guarantee(config).model_dump(mode="json"),
    }


def total_steps(config: TrainingConfig, rows: int, rows_per_step: int) -> int:
    """Return the number of optimizer steps of a run."""
    return config.max_steps or max(1, math.ceil(math.ceil(rows / rows_per_step) * config.epochs))


def _check_processes(config: TrainingConfig) -> None:
    """Raise ConfigInvalid if the stage was started with another number of processes than it has devices."""
    if world_size() != config.processes:
        hosts = f" and nodes is {config.nodes}" if config.nodes > 1 else ""
        option = f"--nnodes {config.nodes} " if config.nodes > 1 else ""
        raise ConfigInvalid(
            f"devices is {config.devices}{hosts}, but the number of processes is {world_size()}.",
            f"Start the stage with `python -m torch.distributed.run {option}--nproc_per_node "
            f"{config.devices} -m trainers.{config.stage} …`, or change devices.",
        )


def _check_optimizer(config: TrainingConfig) -> None:
    """Raise DeviceUnavailable if this host cannot run the optimizer."""
    if config.optimizer not in (Optimizer.adamw_8bit, Optimizer.paged_adamw_8bit):
        return
    if not is_bitsandbytes_available():
        raise DeviceUnavailable(
            f"optimizer is {config.optimizer}, which needs bitsandbytes; it is not installed.",
            "Install the extra `cuda` on the worker, or set optimizer to adamw or adafactor.",
        )
    if config.optimizer is Optimizer.paged_adamw_8bit and pick_device(config.queue).type == "cpu":
        raise DeviceUnavailable(
            "optimizer is paged_adamw_8bit, which pages the memory of GPUs; this host has none.",
            "Set optimizer to adamw_8bit, or run the stage on a GPU.",
        )


def _accumulation_steps(config: TrainingConfig) -> int:
    """Return the micro-batches per device and step."""
    assert config.micro_batch_size is not None
    return config.batch_size // (config.micro_batch_size * config.processes)


def recomputed_every(config: TrainingConfig, longest_tokens: int) -> int | None:
    """Return every how many layers the activations of one are recomputed: 1 for all, None for none.

    Recomputing all layers costs about a third more time, so `auto` does it only where memory requires it.
    Each rank of a run must call this, once: all choose for the one with the least memory.
    """
    if config.activation_checkpointing != "auto":
        return 1 if config.activation_checkpointing else None
    return choose_recomputation(config, agreed_host(config), longest_tokens)
