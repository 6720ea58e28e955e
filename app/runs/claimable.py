"""The runs that could start now, in the order in which they should: the queries behind a claim."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlmodel import Session, col

from app.storage.database import database_now
from app.tables import Host, HostStatus, Run, RunStatus
from trainers.configs import Queue, StageKind
from trainers.configs.engines import join_capabilities

# A run needs at most an engine and the program of a metric.
MAX_JOINED_CAPABILITIES = 2


@dataclass(frozen=True)
class FreeResources:
    """Devices and disk space of a worker's host that are free for one more run, and its capabilities."""

    gpus: int
    disk_bytes: int
    """Free space of the disk that contains the worker's data directory."""
    max_gpus: int = 0
    """The GPUs that the worker has when none is in use."""
    capabilities: frozenset[str] = frozenset()
    host_id: str | None = None
    """The launched host of the worker, which must be ready: CUDA works, and it is not about to end."""
    job_id: str | None = None
    """The job for which alone that host was launched."""
    full_queues: frozenset[Queue] = frozenset()
    """Queues on which only a run that needs no device can start."""


@dataclass(frozen=True)
class Precedence:
    """A run that those behind it, by priority and age, must not overtake on its queue."""

    queue: Queue
    priority: int
    run_id: str

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the precedence of a run."""
        return cls(run.queue, run.priority, run.id)


def select_claimable(
    queues: Sequence[Queue],
    stages: Sequence[StageKind] = tuple(StageKind),
    free: FreeResources | None = None,
) -> Select[str]:
    """Select the ids of the runs that could start now, in the order in which they should.

    With `free`, a run that needs more GPUs or disk space is left to another host, or until they are free.
    """
    fits: list[ColumnElement[bool]] = []
    if free is not None:
        needed_bytes = col(Run.needed_disk_bytes)
        fits = [
            or_(col(Run.queue).not_in(free.full_queues), col(Run.device_count) == 0),
            or_(col(Run.queue) != Queue.cuda, col(Run.device_count) <= free.gpus),
            or_(needed_bytes.is_(None), needed_bytes <= free.disk_bytes),
            or_(col(Run.capability).is_(None), col(Run.capability).in_(_join_all(free.capabilities))),
            *suits_host(free),
        ]
    return (
        select(col(Run.id))
        .where(
            *fits,
            col(Run.status) == RunStatus.queued,
            col(Run.queue).in_(queues),
            col(Run.stage).in_(stages),
            or_(col(Run.claimable_at).is_(None), col(Run.claimable_at) <= database_now()),
            col(Run.unmet_needs) == 0,
        )
        .order_by(col(Run.priority).desc(), col(Run.id))
    )


def is_ahead_of(priority: int, run_id: str) -> ColumnElement[bool]:
    """Return the SQL condition that a run is claimed before the run with this priority and id."""
    return or_(col(Run.priority) > priority, and_(col(Run.priority) == priority, col(Run.id) < run_id))


def order_queues(
    session: Session, queues: Sequence[Queue], stages: Sequence[StageKind], free: FreeResources | None
) -> Sequence[Queue]:
    """Return the queues by the priority and age of their first runs.

    The database finds the first run of one queue in an index, but would sort all runs of several.
    """
    if len(queues) == 1:
        return queues
    first: dict[Queue, tuple[int, str]] = {}
    for queue in queues:
        columns = col(Run.priority), col(Run.id)
        row = session.execute(
            select_claimable([queue], stages, free).with_only_columns(*columns).limit(1)
        ).first()
        if row is not None:
            first[queue] = -row[0], row[1]
    return sorted(first, key=lambda queue: first[queue])


def select_next(
    session: Session,
    queue: Queue,
    stages: Sequence[StageKind],
    free: FreeResources | None,
    max_overtake_seconds: float | None,
    precedence: Precedence | None = None,
) -> Select[str]:
    """Select the ids of the runs to claim on one queue, in order; with `precedence`, only those ahead of it.

    Runs behind one that has waited for GPUs for longer than `max_overtake_seconds` are left out, unless they
    need no device.
    """
    # A run on several hosts is claimed by a group of workers: see `runs/groups`.
    claimable = select_claimable([queue], stages, free).where(col(Run.nodes) == 1)
    if precedence is not None and precedence.queue is queue:
        is_ahead = is_ahead_of(precedence.priority, precedence.run_id)
        claimable = claimable.where(or_(col(Run.device_count) == 0, is_ahead))
    if free is not None and max_overtake_seconds is not None and queue is Queue.cuda:
        starved = _find_starved(session, stages, free, max_overtake_seconds)
        if starved is not None:
            claimable = claimable.where(or_(col(Run.device_count) == 0, is_ahead_of(*starved)))
    return claimable


def _find_starved(
    session: Session, stages: Sequence[StageKind], free: FreeResources, max_overtake_seconds: float
) -> tuple[int, str] | None:
    """Return the priority and id of the first run that has waited too long for more GPUs than are free."""
    if not 0 < free.gpus < free.max_gpus:
        return None
    # Whether a run on several hosts may be overtaken depends on the other workers: see `runs/groups`.
    waiting = select_claimable([Queue.cuda], stages).where(
        col(Run.nodes) == 1,
        col(Run.device_count) > free.gpus,
        col(Run.device_count) <= free.max_gpus,
        col(Run.created_at) < database_now(-max_overtake_seconds),
        *suits_host(free),
    )
    row = session.execute(waiting.with_only_columns(col(Run.priority), col(Run.id)).limit(1)).first()
    return row and (row[0], row[1])


def suits_host(free: FreeResources) -> list[ColumnElement[bool]]:
    """Return the conditions that a run may be executed on the worker's host.

    A host of one job takes no other runs, and nobody else takes those of a job with a host of its own.
    """
    suits: list[ColumnElement[bool]] = [col(Run.own_host).is_(False)]
    if free.job_id is not None:
        suits = [col(Run.own_host).is_(True), col(Run.job_id) == free.job_id]
    if free.host_id is not None:
        is_ready = col(Host.id) == free.host_id, col(Host.status) == HostStatus.ready
        suits.append(exists().where(*is_ready))
    return suits


def _join_all(capabilities: Iterable[str]) -> list[str]:
    """Return the capabilities, and each combination that a run may need at once."""
    sizes = range(1, MAX_JOINED_CAPABILITIES + 1)
    return [
        str(join_capabilities(some)) for size in sizes for some in combinations(sorted(capabilities), size)
    ]
