"""What a queued run waits for."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from sqlalchemy import func, select
from sqlmodel import Session, col

from app.hosts.waiting import explain_host_wait
from app.runs.claimable import is_ahead_of, select_claimable
from app.runs.graph import Needs
from app.storage.database import database_now
from app.tables import Run, RunNeed, RunStatus, Worker
from app.workers.capable import explain_busy_nodes, filter_capable_workers
from app.workers.service import AliveWorkers, explain_missing_worker
from app.workers.slots import FreeSlots, count_free_slots
from trainers.configs import Queue

MAX_COUNTED_AHEAD = 1000


class FreeCapacity:
    """The live workers and their free slots, which are counted once, and only if a run needs them."""

    def __init__(self, session: Session, workers: Sequence[Worker]) -> None:
        self._session = session
        self.workers = workers

    @cached_property
    def slots(self) -> FreeSlots:
        """The free slots, by the worker's id and the queue."""
        return count_free_slots(self._session, self.workers)


def explain_waiting(
    session: Session,
    alive: AliveWorkers,
    runs: Sequence[Run],
    needs: Needs,
    ahead: Mapping[str, int] | None = None,
) -> dict[str, str | None]:
    """Return what each queued run waits for, by the run's id; None if it is about to start.

    The runs are those of one job, or need no run that has not ended as it must. `ahead` are the runs that
    start before each one, where the caller has counted them.
    """
    reasons: dict[str, str | None] = {}
    queued = [run for run in runs if run.status is RunStatus.queued]
    capacity = FreeCapacity(session, alive.read(session) if queued else [])
    for run in queued:
        reasons[run.id] = (
            _explain_needs(runs, needs.get(run.id, ()))
            or (explain_host_wait(session, run.job_id) if run.own_host else None)
            or explain_missing_worker(
                capacity.workers, run.queue, run.stage, run.device_count, run.capability, run.nodes
            )
            or _explain_disk_wait(run)
            or _explain_retry_delay(session, run)
            or _explain_busy_workers(session, run, capacity, ahead)
        )
    return reasons


def count_ahead(session: Session, run: Run) -> int:
    """Return how many runs start before a run on its queue, and could now; at most MAX_COUNTED_AHEAD."""
    is_ahead = is_ahead_of(run.priority, run.id)
    ahead = select_claimable([run.queue]).where(is_ahead).limit(MAX_COUNTED_AHEAD).subquery()
    return session.scalar(select(func.count()).select_from(ahead)) or 0


def _explain_needs(runs: Sequence[Run], needs: Sequence[RunNeed]) -> str | None:
    required = {need.needed_id: need.required_status for need in needs}
    waiting = [
        f"{run.name!r}, which is {run.status}"
        for run in runs
        if run.id in required and not required[run.id].allows(run.status)
    ]
    if not waiting:
        return None
    return f"Waits for the stage{'s' if len(waiting) > 1 else ''} {'; '.join(waiting)}."


def _explain_disk_wait(run: Run) -> str | None:
    if run.needed_disk_bytes is None:
        return None
    mebibytes = -(-run.needed_disk_bytes >> 20)
    return f"Waits for a worker with {mebibytes} MiB of free disk space: the disk was full."


def _explain_retry_delay(session: Session, run: Run) -> str | None:
    if run.claimable_at is None:
        return None
    is_delayed = select(col(Run.claimable_at) > database_now()).where(col(Run.id) == run.id)
    if session.scalar(is_delayed) is not True:
        return None
    earliest = run.claimable_at.isoformat(timespec="seconds")
    count = "1 failure" if run.failure_count == 1 else f"{run.failure_count} failures"
    return f"Retried at {earliest} or later, after {count} of the worker or its host."


def _explain_busy_workers(
    session: Session, run: Run, capacity: FreeCapacity, ahead: Mapping[str, int] | None
) -> str | None:
    workers, free = capacity.workers, capacity.slots
    capable = filter_capable_workers(workers, run.queue, run.stage, run.device_count, run.capability)
    n_needed = run.device_count if run.queue is Queue.cuda else min(run.device_count, 1)
    if run.nodes > 1:
        return explain_busy_nodes(workers, run, free)
    most_free = max(free[worker.id][run.queue] for worker in capable)
    if n_needed <= most_free:
        return None
    n_ahead = count_ahead(session, run) if ahead is None else ahead[run.id]
    more = " or more" if n_ahead >= MAX_COUNTED_AHEAD else ""
    if most_free > 0:
        needs = f"it needs {n_needed} GPUs"
        busy = f"{needs}, and no worker on queue {run.queue} has more than {most_free} free"
    elif len(capable) == 1:
        busy = f"the only worker on queue {run.queue} is busy"
    else:
        busy = f"all {len(capable)} workers on queue {run.queue} are busy"
    if n_ahead == 0:
        return f"This run is the next one; {busy}."
    runs = "1 run is" if n_ahead == 1 else f"{n_ahead}{more} runs are"
    return f"{runs} ahead of this one; {busy}."
