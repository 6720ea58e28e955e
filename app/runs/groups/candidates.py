"""Which run on several hosts a worker should offer itself to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlmodel import Session, col

from app.runs.claimable import FreeResources, Precedence, select_claimable, suits_host
from app.settings import Settings
from app.storage.database import database_now
from app.tables import Run, Worker
from app.workers.capable import count_free_nodes, count_nodes, list_node_workers
from app.workers.service import is_alive, list_alive_workers
from app.workers.slots import count_free_slots
from trainers.configs import Queue, StageKind

# Runs that are looked at: those behind wait until one of these has started.
MAX_CANDIDATES = 8


@dataclass(frozen=True)
class GroupChoice:
    """What a worker should do next about runs on several hosts."""

    run: Run | None = None
    """The first run, by priority and age, for which enough workers are free."""
    precedence: Precedence | None = None
    """The run that those behind it must not overtake on this worker."""


def choose_group(
    session: Session,
    settings: Settings,
    worker_id: str,
    queues: Sequence[Queue],
    stages: Sequence[StageKind],
    free: FreeResources,
    left_out: Collection[str] = (),
) -> GroupChoice:
    """Return the run to which the worker should offer itself, and what may start before it.

    Runs of which `left_out` names the id are skipped. A run that has waited for longer than
    `max_overtake_seconds`, and for which there are enough workers, busy or not, is not overtaken.
    """
    runs = _list_waiting(session, settings, queues, stages, free)
    if not runs:
        return GroupChoice()
    workers = list_alive_workers(session, settings)
    slots = count_free_slots(session, workers)
    for run in runs:
        capable = list_node_workers(workers, run)
        if count_nodes(capable, run) < run.nodes or all(worker.id != worker_id for worker in capable):
            continue
        has_enough = count_free_nodes(capable, run, slots) >= run.nodes
        if run.id not in left_out and _fits(run, free) and has_enough:
            return GroupChoice(run, Precedence.of(run))
        if _has_starved(session, run, settings):
            return GroupChoice(None, Precedence.of(run))
    return GroupChoice()


def _list_waiting(
    session: Session,
    settings: Settings,
    queues: Sequence[Queue],
    stages: Sequence[StageKind],
    free: FreeResources,
) -> Sequence[Run]:
    """Return the first runs that this worker could take part in, if its devices were free.

    Those that need more workers than are alive are left out: they must not hide the ones behind them.
    """
    has_address = col(Worker.node_address).is_not(None)
    n_alive = select(func.count()).select_from(Worker).where(is_alive(settings), has_address)
    conditions = [
        col(Run.nodes) > 1,
        col(Run.nodes) <= n_alive.scalar_subquery(),
        or_(col(Run.queue) != Queue.cuda, col(Run.device_count) <= free.max_gpus),
        *suits_host(free),
    ]
    claimable = select_claimable(queues, stages).where(*conditions).limit(MAX_CANDIDATES).subquery()
    ordered = select(Run).where(col(Run.id).in_(select(claimable.c.id)))
    return session.scalars(ordered.order_by(col(Run.priority).desc(), col(Run.id))).all()


def _fits(run: Run, free: FreeResources) -> bool:
    """Return whether the worker has free devices and disk space for a node of the run."""
    uses_gpus = run.queue is Queue.cuda
    has_devices = run.device_count <= free.gpus if uses_gpus else run.queue not in free.full_queues
    return has_devices and (run.needed_disk_bytes or 0) <= free.disk_bytes


def _has_starved(session: Session, run: Run, settings: Settings) -> bool:
    is_old = select(col(Run.created_at) < database_now(-settings.max_overtake_seconds)).where(
        col(Run.id) == run.id
    )
    return session.scalar(is_old) is True
