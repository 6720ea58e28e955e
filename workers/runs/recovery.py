"""What a worker mends by itself: too little memory for a micro-batch, and a full disk."""

import logging
import shutil
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from app.runs import lifecycle
from app.runs.lifecycle import NewEvent
from app.storage.database import read_session, transaction
from app.tables import Checkpoint, EventType, Run, RunStatus
from trainers.runtime.error_codes import ErrorCode
from workers.hosts.worker import WorkerContext

# A checkpoint is written beside the one before it, and the model beside both; less than 64 MiB is no room
# for any of a run's files to grow.
CHECKPOINTS_OF_ROOM = 3
LEAST_ROOM_BYTES = 64 << 20
VMSTAT = Path("/proc/vmstat")

logger = logging.getLogger(__name__)


def halve_micro_batch(config: dict[str, Any]) -> dict[str, Any] | None:
    """The config with about half the rows in a forward pass and as many in a step; None where it has one."""
    rows = config.get("micro_batch_size")
    if not rows or rows == 1:
        return None
    share = config["batch_size"] // config["devices"]
    return config | {"micro_batch_size": next(n for n in range(rows // 2, 0, -1) if share % n == 0)}


def micro_batch_warning(run: Run, config: dict[str, Any]) -> NewEvent:
    """The warning that the run goes on with fewer rows at once."""
    message = (
        f"The device ran out of memory with micro_batch_size {run.config['micro_batch_size']}, so the run "
        f"goes on from its last checkpoint with {config['micro_batch_size']} and more accumulation; "
        f"batch_size {config['batch_size']}, and so each step, stays the same."
    )
    return NewEvent(EventType.warning, {"code": "micro_batch_halved", "message": message})


def count_oom_kills() -> int:
    """Programs that the kernel has killed for memory since it started; 0 where it does not tell."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def oom_kill_error(run: Run) -> dict[str, Any]:
    """The error of a program that the kernel ended."""
    return {
        "code": ErrorCode.out_of_memory,
        "message": f"The kernel killed the program of {run.id} because the host had no memory left.",
        "hint": "Lower micro_batch_size (batch_size, and so the result, may stay as it is) or max_length.",
    }


def disk_full_error(message: str) -> dict[str, Any]:
    """The error of a run that waits for room."""
    hint = "Free some space: the run then goes on by itself from its last checkpoint."
    return {"code": ErrorCode.disk_full, "message": message, "hint": hint}


def release_disk_waits(host: WorkerContext) -> None:
    """Queue runs again that a full disk had paused, if this worker's disk has room for them now."""
    with read_session() as session:
        waiting = _waiting_for_room(session, host)
        needed = {run.id: _room_bytes(session, run) for run in waiting}
    if not needed:
        return
    free = shutil.disk_usage(host.settings.data_dir).free
    for run_id in [run_id for run_id, size in needed.items() if size <= free]:
        with transaction() as session:
            reason = {"reason": "there is room on the disk again", "free_bytes": free}
            moved = lifecycle.move(
                session,
                run_id,
                RunStatus.queued,
                sources=[RunStatus.paused],
                values={"error": None},
                data=reason,
            )
        if moved is not None:
            logger.info("goes on after a full disk", extra={"run_id": run_id})


def _waiting_for_room(session: Session, host: WorkerContext) -> list[Run]:
    """Runs that a full disk has paused, and that this worker could go on with."""
    paused = select(Run).where(
        col(Run.status) == RunStatus.paused,
        col(Run.queue).in_(host.queues),
        col(Run.stage).in_(host.stages),
        col(Run.error).is_not(None),
    )
    return [run for run in session.exec(paused) if lifecycle.is_waiting_for_room(run)]


def _room_bytes(session: Session, run: Run) -> int:
    """Free bytes from which a run can be expected to write its next files."""
    sizes = select(Checkpoint.size_bytes).where(col(Checkpoint.run_id) == run.id)
    newest = session.exec(sizes.order_by(col(Checkpoint.step).desc()).limit(1)).first()
    return max(LEAST_ROOM_BYTES, CHECKPOINTS_OF_ROOM * (newest or 0))
