"""Which workers live, what they hold, and what a queued run waits for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlmodel import Session, col

from app.http.paging import PageQuery, paginate_newest_first
from app.runs.lifecycle import select_claimable
from app.settings import Settings, get_settings
from app.storage.database import database_now
from app.tables import HELD, Deployment, DeploymentStatus, Run, RunStatus, Worker
from trainers.configs import Queue, StageKind

MAX_MISSED_HEARTBEATS = 3
COUNTED_AHEAD = 1000


@dataclass(frozen=True)
class WorkerAssignments:
    """What a worker has in hand."""

    runs: list[str]
    deployments: list[str]


def is_alive(settings: Settings) -> ColumnElement[bool]:
    """True of a worker that was heard of lately and has not said goodbye."""
    recently = database_now(-MAX_MISSED_HEARTBEATS * settings.heartbeat_seconds)
    return and_(col(Worker.stopped_at).is_(None), col(Worker.last_seen_at) > recently)


def list_alive_workers(session: Session, settings: Settings) -> Sequence[Worker]:
    """Workers that could take a run now or when they are free."""
    return session.scalars(select(Worker).where(is_alive(settings)).order_by(col(Worker.id))).all()


def list_workers(
    session: Session, settings: Settings, paging: PageQuery, only_living: bool
) -> tuple[list[tuple[Worker, bool, WorkerAssignments]], str | None]:
    """Workers from new to old, each with whether it lives and what it holds."""
    statement = select(Worker).where(is_alive(settings)) if only_living else select(Worker)
    workers, following = paginate_newest_first(session, statement, col(Worker.id), paging)
    ids = [worker.id for worker in workers]
    alive = set(session.scalars(select(col(Worker.id)).where(col(Worker.id).in_(ids), is_alive(settings))))
    held = _held(session, ids)
    return [(worker, worker.id in alive, held[worker.id]) for worker in workers], following


def filter_capable_workers(workers: Sequence[Worker], queue: Queue, stage: StageKind) -> list[Worker]:
    """Those of the workers that serve the queue and can run the stage."""
    return [worker for worker in workers if queue in worker.queues and stage in worker.stages]


def explain_missing_worker(queue: Queue, stage: StageKind, workers: Sequence[Worker]) -> str | None:
    """A sentence when none of the living workers can take such a run."""
    if filter_capable_workers(workers, queue, stage):
        return None
    start = f"Start one: python -m workers --queue {queue}"
    if any(queue in worker.queues for worker in workers):
        return f"No living worker of queue {queue} can run the stage {stage}. {start}"
    return f"No living worker serves queue {queue}. {start}"


def explain_missing_deployment_worker(session: Session, queue: Queue) -> str | None:
    """A sentence when no living worker can keep deployments of the queue."""
    return explain_missing_worker(queue, StageKind.deploy, list_alive_workers(session, get_settings()))


def explain_waiting(session: Session, settings: Settings, runs: Sequence[Run]) -> dict[str, str | None]:
    """What each queued run of one job waits for, by the run's id; None when it is about to start."""
    reasons: dict[str, str | None] = {}
    queued = [run for run in runs if run.status is RunStatus.queued]
    workers = list_alive_workers(session, settings) if queued else []
    for run in queued:
        before = next(
            (r for r in runs if r.position < run.position and r.status is not RunStatus.succeeded), None
        )
        if before is not None:
            reasons[run.id] = f"Waits for stage {before.name!r}, which is {before.status}."
        else:
            reasons[run.id] = (
                explain_missing_worker(run.queue, run.stage, workers)
                or _explain_disk_wait(run)
                or _backing_off(session, run)
                or _in_line(session, run, workers)
            )
    return reasons


def _explain_disk_wait(run: Run) -> str | None:
    if run.needed_disk_bytes is None:
        return None
    mebibytes = -(-run.needed_disk_bytes >> 20)
    return f"Waits for a worker with {mebibytes} MiB of free disk space: the disk was full."


def _backing_off(session: Session, run: Run) -> str | None:
    """After a fault of the machine a run is left alone for a while."""
    if (
        run.claimable_at is None
        or session.scalar(select(col(Run.claimable_at) > database_now()).where(col(Run.id) == run.id))
        is not True
    ):
        return None
    earliest = run.claimable_at.isoformat(timespec="seconds")
    count = "1 failure" if run.failure_count == 1 else f"{run.failure_count} failures"
    return f"Retried at {earliest} or later, after {count} of the worker or its host."


def _in_line(session: Session, run: Run, workers: Sequence[Worker]) -> str | None:
    """How many come first, when every worker that could take the run is busy."""
    takers = [worker.id for worker in filter_capable_workers(workers, run.queue, run.stage)]
    held = col(Run.worker_id).in_(takers), col(Run.status).in_(HELD)
    busy = session.scalar(select(func.count(col(Run.worker_id).distinct())).where(*held)) or 0
    if busy < len(takers):
        return None
    first = or_(
        col(Run.priority) > run.priority, and_(col(Run.priority) == run.priority, col(Run.id) < run.id)
    )
    ahead = session.scalar(
        select(func.count()).select_from(
            select_claimable([run.queue]).where(first).limit(COUNTED_AHEAD).subquery()
        )
    )
    counted = f"{ahead} or more" if ahead == COUNTED_AHEAD else str(ahead)
    return f"All {busy} workers of queue {run.queue} are busy, and {counted} runs are before it."


def _held(session: Session, worker_ids: Sequence[str]) -> dict[str, WorkerAssignments]:
    held: dict[str, WorkerAssignments] = defaultdict(lambda: WorkerAssignments([], []))
    runs = select(col(Run.worker_id), col(Run.id)).where(
        col(Run.worker_id).in_(worker_ids), col(Run.status).in_(HELD)
    )
    for worker_id, run_id in session.execute(runs):
        held[worker_id].runs.append(run_id)
    statuses = [status for status in DeploymentStatus if status.held]
    deployments = select(col(Deployment.worker_id), col(Deployment.id)).where(
        col(Deployment.worker_id).in_(worker_ids), col(Deployment.status).in_(statuses)
    )
    for worker_id, deployment_id in session.execute(deployments):
        held[worker_id].deployments.append(deployment_id)
    return held
