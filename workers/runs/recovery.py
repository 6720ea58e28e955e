"""Failures that a worker recovers from: too little memory for a micro-batch, and a full disk."""

from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from app.runs.attempt_outcome import NewEvent
from app.tables import Checkpoint, Run
from trainers.configs import TrainingConfig, parse_stage

# A checkpoint is written while the one before it and the model are still on the disk.
CHECKPOINTS_IN_FREE_SPACE = 3
MIN_FREE_BYTES = 64 << 20
DISK_FULL_HINT = "Free some disk space: the run then resumes by itself from its last checkpoint."
VMSTAT = Path("/proc/vmstat")


def reduce_memory(config: dict[str, Any]) -> dict[str, Any]:
    """Return `smaller_config` and `warning` of an AttemptOutcome; empty if the config cannot be reduced.

    The micro-batch is about halved. The batch size, and therefore each step, stays the same, so a loss that
    depends on the micro-batch is not trained with a smaller one.
    """
    stage = parse_stage(config)
    if not isinstance(stage, TrainingConfig) or stage.micro_batch_size in (None, 1):
        return {}
    if stage.micro_batch_losses:
        return {}
    assert stage.micro_batch_size is not None
    rows_per_device = stage.batch_size // stage.devices
    smaller = next(n for n in range(stage.micro_batch_size // 2, 0, -1) if rows_per_device % n == 0)
    message = (
        f"The device ran out of memory with micro_batch_size {stage.micro_batch_size}. The run resumes from "
        f"its last checkpoint with micro_batch_size {smaller} and more gradient accumulation; batch_size "
        f"{stage.batch_size}, and therefore each step, stays the same."
    )
    return {
        "smaller_config": config | {"micro_batch_size": smaller},
        "warning": NewEvent.warning("micro_batch_halved", message),
    }


def count_oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory; 0 where it keeps no count."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def estimate_needed_bytes(session: Session, run: Run) -> int:
    """Return the free bytes of disk with which the run can be expected to write its next files."""
    sizes = select(Checkpoint.size_bytes).where(col(Checkpoint.run_id) == run.id)
    latest = session.exec(sizes.order_by(col(Checkpoint.step).desc()).limit(1)).first()
    return max(MIN_FREE_BYTES, CHECKPOINTS_IN_FREE_SPACE * (latest or 0))
