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
    """The live workers, those that can take each kind of run, and their free slots, each found once."""

    def __init__(self, session: Session, workers: Sequence[Worker]) -> None:
        self._session = session
        self.workers = workers
        self._missing: dict[tuple[object, ...], str | None] = {}
        self._most_free: dict[tuple[object, ...], tuple[int, int]] = {}

    @cached_property
    def slots(self) -> FreeSlots:
        """The free slots, by the worker's id and the queue."""
        return count_free_slots(self._session, self.workers)

    def explain_missing(self, run: Run) -> str | None:
        """Return why none of the workers can take a run; None if one can."""
        needs = run.queue, run.stage, run.device_count, run.capability, run.nodes
        if needs not in self._missing:
            self._missing[needs] = explain_missing_worker(self.workers, *needs)
        return self._missing[needs]

    def count_capable(self, run: Run) -> tuple[int, int]:
        """Return the number of workers that can take a run, and the most slots that are free on one."""
        needs = run.queue, run.stage, run.device_count, run.capability
        if needs not in self._most_free:
            capable = filter_capable_workers(self.workers, *needs)
            most_free = max(self.slots[worker.id][run.queue] for worker in capable)
            self._most_free[needs] = len(capable), most_free
        return self._most_free[needs]


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
            or capacity.explain_missing(run)
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


def _describe_busy(queue: Queue, n_capable: int, workers: Sequence[Worker]) -> str:
    n_serving = sum(queue in worker.queues for worker in workers)
    if n_capable < n_serving:
        which = "the only one" if n_capable == 1 else f"all {n_capable}"
        verb = "is" if n_capable == 1 else "are"
        return f"{which} of {n_serving} workers on queue {queue} that can take it {verb} busy"
    if n_capable == 1:
        return f"the only worker on queue {queue} is busy"
    return f"all {n_capable} workers on queue {queue} are busy"


def _explain_needs(runs: Sequence[Run], needs: Sequence[RunNeed]) -> str | None:
    if not needs:
        return None
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
    n_needed = run.device_count if run.queue is Queue.cuda else min(run.device_count, 1)
    if run.nodes > 1:
        return explain_busy_nodes(capacity.workers, run, capacity.slots)
    n_capable, most_free = capacity.count_capable(run)
    if n_needed <= most_free:
        return None
    n_ahead = count_ahead(session, run) if ahead is None else ahead[run.id]
    more = " or more" if n_ahead >= MAX_COUNTED_AHEAD else ""
    if most_free > 0:
        needs = f"it needs {n_needed} GPUs"
        busy = f"{needs}, and no worker on queue {run.queue} has more than {most_free} free"
    else:
        busy = _describe_busy(run.queue, n_capable, capacity.workers)
    if n_ahead == 0:
        return f"This run is the next one; {busy}."
    runs = "1 run is" if n_ahead == 1 else f"{n_ahead}{more} runs are"
    return f"{runs} ahead of this one; {busy}."
