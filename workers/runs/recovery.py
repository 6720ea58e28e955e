"""Failures that a worker recovers from: too little memory for a micro-batch, and a full disk."""

from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from app.runs.attempt_outcome import AttemptOutcome, NewEvent
from app.tables import Checkpoint, Run
from trainers.configs import FullTuning, TrainingConfig, parse_stage
from trainers.configs.on_policy import EngineSampledConfig
from trainers.runtime.errors import TunesmithError

# A checkpoint is written while the one before it and the model are still on the disk.
CHECKPOINTS_IN_FREE_SPACE = 3
MIN_FREE_BYTES = 64 << 20
DISK_FULL_HINT = "Free some disk space: the run then resumes by itself from its last checkpoint."
VMSTAT = Path("/proc/vmstat")


def reduce_memory(error: TunesmithError, config: dict[str, Any], recomputes_all: bool) -> AttemptOutcome:
    """Return the end of an attempt that ran out of memory, with the next smaller config if there is one.

    `recomputes_all` is whether the program has recomputed every layer, which `auto` may have chosen.
    First all activations are recomputed, which costs about a third more time; then the micro-batch is about
    halved, again and again. Neither changes the batch size or the result. Less precise weights would: they
    are offered in the error's hint.
    """
    stage = parse_stage(config)
    if not isinstance(stage, TrainingConfig) or stage.micro_batch_size is None:
        return AttemptOutcome(error)
    same = f"batch_size {stage.batch_size}, and therefore each step, stays the same."
    if not (stage.activation_checkpointing is True or recomputes_all):
        message = (
            "The device ran out of memory. The run resumes from its last checkpoint with "
            f"activation_checkpointing true, which recomputes activations in the backward pass; {same}"
        )
        return _retry(error, config | {"activation_checkpointing": True}, "recomputation_enabled", message)
    if stage.micro_batch_size == 1 or stage.micro_batch_losses:
        error.hint = _offer_less_memory(stage)
        return AttemptOutcome(error)
    rows_per_device = stage.batch_size // stage.processes
    smaller = next(n for n in range(stage.micro_batch_size // 2, 0, -1) if rows_per_device % n == 0)
    message = (
        f"The device ran out of memory with micro_batch_size {stage.micro_batch_size}. The run resumes from "
        f"its last checkpoint with micro_batch_size {smaller} and more gradient accumulation; {same}"
    )
    return _retry(error, config | {"micro_batch_size": smaller}, "micro_batch_halved", message)


def _retry(error: TunesmithError, smaller: dict[str, Any], code: str, message: str) -> AttemptOutcome:
    return AttemptOutcome(error, smaller_config=smaller, warning=NewEvent.warning(code, message))


def _offer_less_memory(stage: TrainingConfig) -> str:
    """Return the hint of a run that nothing without an effect on the result can make smaller."""
    # Its engine needs whole weights in 16 bits on each device, so neither nf4 nor fsdp2 is possible.
    has_engine = isinstance(stage, EngineSampledConfig) and stage.generation.engine is not None
    remedies = []
    if isinstance(stage.tuning, FullTuning):
        remedies.append(
            "train an adapter (tuning.method lora), which needs an eighth of the memory per weight"
        )
    elif has_engine:
        remedies.append("lower vllm_memory_share, or set generation to transformers")
    elif stage.tuning.quantization is None:
        remedies.append(
            "set tuning.quantization to nf4 (on a Mac 4bit), which stores the base in a quarter of its "
            "memory and costs some quality"
        )
    remedies.append("lower max_length" if hasattr(stage, "max_length") else "use shorter rows")
    remedies.append("use a larger device" + ("" if has_engine else ", or several with parallelism fsdp2"))
    rows = (
        f"micro_batch_size is {stage.micro_batch_size}"
        if stage.micro_batch_size == 1
        else f"micro_batch_size {stage.micro_batch_size} is part of the loss"
    )
    return f"All activations are recomputed already, and {rows}. Any of these helps: {'; '.join(remedies)}."


def count_oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory; 0 where it keeps no count."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def estimate_needed_bytes(session: Session, run: Run, first_checkpoint_bytes: float) -> int:
    """Return the free bytes of disk with which the run can be expected to write its next files.

    Before the first checkpoint, its expected size counts: a copy of a sharded base, which is written before
    training and then removed, is smaller.
    """
    sizes = select(Checkpoint.size_bytes).where(col(Checkpoint.run_id) == run.id)
    latest = session.exec(sizes.order_by(col(Checkpoint.step).desc()).limit(1)).first()
    needed = first_checkpoint_bytes if latest is None else CHECKPOINTS_IN_FREE_SPACE * latest
    return max(MIN_FREE_BYTES, int(needed))
